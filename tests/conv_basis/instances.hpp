#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "bda/conv_basis/basis.hpp"

/// Random matrices with a known conv basis, and attention whose scores have one.
namespace bda_test {

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  std::int64_t in(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  double uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  Eigen::MatrixXd normal(Eigen::Index rows, Eigen::Index cols) {
    return Eigen::MatrixXd::NullaryExpr(rows, cols, [&] { return normal_(engine_); });
  }
  /// `count` distinct numbers of [low, high], descending.
  std::vector<std::int64_t> descending(std::int64_t count, std::int64_t low, std::int64_t high) {
    std::vector<std::int64_t> all;
    for (std::int64_t i = low; i <= high; ++i) all.push_back(i);
    std::shuffle(all.begin(), all.end(), engine_);
    all.resize(static_cast<std::size_t>(count));
    std::sort(all.rbegin(), all.rend());
    return all;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<double> normal_;
};

/// conv(b, m) by its definition, n x n.
inline Eigen::MatrixXd conv(const Eigen::VectorXd& b, std::int64_t n) {
  Eigen::MatrixXd h = Eigen::MatrixXd::Zero(n, n);
  const std::int64_t m = b.size(), s = n - m;
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j <= i; ++j) h(s + i, s + j) = b(i - j);
  return h;
}

/// A basis of random terms b_i of integers, not all zero, so that sums of them are exact.
/// m_k >= smallest; m_1 = n in half of the cases.
struct RandomBasis {
  std::int64_t n;
  std::vector<Eigen::VectorXd> terms;  // b_i

  RandomBasis(Random& random, std::int64_t n_, std::int64_t k, std::int64_t smallest = 1) : n(n_) {
    std::vector<std::int64_t> widths = random.descending(k, smallest, n);
    if (random.in(0, 1) == 0) widths[0] = n;
    for (std::int64_t m : widths) {
      Eigen::VectorXd b = Eigen::VectorXd::NullaryExpr(m, [&] { return double(random.in(-3, 3)); });
      if ((b.array() == 0).all()) b(m - 1) = 1;
      terms.push_back(b);
    }
  }
  [[nodiscard]] Eigen::MatrixXd dense() const {
    Eigen::MatrixXd h = Eigen::MatrixXd::Zero(n, n);
    for (const auto& b : terms) h += conv(b, n);
    return h;
  }
  [[nodiscard]] bda::conv_basis::ConvBasis basis() const {
    bda::conv_basis::ConvBasis h(n);
    Eigen::VectorXd sum = Eigen::VectorXd::Zero(n);
    for (const auto& b : terms) h.add_column(sum = (sum.head(b.size()) + b).eval());
    return h;
  }
  /// The largest delta for which it is (T, delta)-non-degenerate.
  [[nodiscard]] double delta(std::int64_t window) const {
    double smallest = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < terms.size(); ++i) {
      Eigen::VectorXd sum = Eigen::VectorXd::Zero(window);
      for (std::size_t j = i + 1; j-- > 0;)
        smallest = std::min(smallest, (sum += terms[j].head(window)).lpNorm<1>());
    }
    return smallest;
  }
};

/// Q, K [n, d] with Q K^T = H + R, H of a known basis: K_j = rotation(j) w_t, Q_i = rotation(i) u,
/// so that their product depends on i - j and on the run t of columns that j lies in.
struct RandomScores {
  Eigen::MatrixXd q, k;              // what recovery sees
  std::vector<std::int64_t> starts;  // ascending, the first columns of the runs
  std::int64_t window = 1;           // T
  double delta = 0, epsilon = 0;  // of which it is an epsilon-close, (T, delta)-non-degenerate one

  RandomScores(Random& random, std::int64_t n, std::int64_t k_terms, std::int64_t planes,
               std::int64_t window_, double size)
      : window(window_) {
    for (std::int64_t m : random.descending(k_terms - 1, window, n - 1)) starts.push_back(n - m);
    starts.insert(starts.begin(), 0);
    const double norm = std::sqrt(size) / std::pow(2 * static_cast<double>(planes), 0.25);
    const Eigen::VectorXd u = norm * random.normal(2 * planes, 1);
    std::vector<double> angle;
    for (std::int64_t p = 0; p < planes; ++p) angle.push_back(random.uniform(0.05, 1.0));
    const auto rotated = [&](const Eigen::VectorXd& x, std::int64_t position) {
      Eigen::VectorXd y(x.size());
      for (std::int64_t p = 0; p < planes; ++p) {
        const double a = angle[static_cast<std::size_t>(p)] * static_cast<double>(position);
        y(2 * p) = std::cos(a) * x(2 * p) - std::sin(a) * x(2 * p + 1);
        y(2 * p + 1) = std::sin(a) * x(2 * p) + std::cos(a) * x(2 * p + 1);
      }
      return y;
    };
    q.resize(n, 2 * planes);
    k.resize(n, 2 * planes);
    for (std::int64_t i = 0; i < n; ++i) q.row(i) = rotated(u, i).transpose();
    for (std::size_t t = 0; t < starts.size(); ++t) {
      const Eigen::VectorXd w = norm * random.normal(2 * planes, 1);
      const std::int64_t end = t + 1 < starts.size() ? starts[t + 1] : n;
      for (std::int64_t j = starts[t]; j < end; ++j) k.row(j) = rotated(w, j).transpose();
    }
    // b_j + ... + b_i is the column of run i less that of run j - 1.
    delta = std::numeric_limits<double>::infinity();
    const auto head = [&](std::size_t t) -> Eigen::VectorXd {
      return q.middleRows(starts[t], window) * k.row(starts[t]).transpose();
    };
    for (std::size_t i = 0; i < starts.size(); ++i) {
      delta = std::min(delta, head(i).lpNorm<1>());
      for (std::size_t j = 0; j < i; ++j) delta = std::min(delta, (head(i) - head(j)).lpNorm<1>());
    }
    // R = Q D^T with an R as large as is allowed, less what rounding of H + R needs: d + 8 ulps
    // (angles and sines included) of |q| |k|, which is at most that of the unrotated ones.
    const Eigen::MatrixXd noise = random.normal(n, 2 * planes);
    const Eigen::MatrixXd all = q * noise.transpose();
    const double largest =
        Eigen::MatrixXd(all.triangularView<Eigen::Lower>()).cwiseAbs().maxCoeff();
    const double rounding = (2 * static_cast<double>(planes) + 8 + static_cast<double>(n)) *
                            std::numeric_limits<double>::epsilon() * q.rowwise().norm().maxCoeff() *
                            k.rowwise().norm().maxCoeff();
    epsilon = random.uniform(0.1, 1) * delta / (5 * static_cast<double>(window));
    k += std::max(epsilon - 2 * rounding, 0.0) / largest * noise;
  }
};

using LongMatrix = Eigen::Matrix<long double, Eigen::Dynamic, Eigen::Dynamic>;

/// softmax(scores) over j <= i, in long double: an oracle whose own rounding is 2000 times finer.
inline LongMatrix causal_softmax(LongMatrix scores) {
  for (Eigen::Index i = 0; i < scores.rows(); ++i) {
    auto row = scores.row(i);
    const long double largest = row.head(i + 1).maxCoeff();
    row.head(i + 1) = (row.head(i + 1).array() - largest).exp().eval();
    row.tail(row.size() - i - 1).setZero();
    row /= row.sum();
  }
  return scores;
}

}  // namespace bda_test

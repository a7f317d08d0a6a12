#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <string>

#include "bda/conv_basis/gradient.hpp"
#include "conv_basis/instances.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using namespace bda::conv_basis;

namespace {

long double loss_of(const LongMatrix& q, const LongMatrix& k, const LongMatrix& v,
                    const LongMatrix& target, long double scale) {
  const LongMatrix out = causal_softmax(scale * (q * k.transpose())) * v;
  return (out - target).squaredNorm() / 2;
}

/// Central differences of `loss` in every entry of x: error h^2 |f'''| / 6 + 2 u |f| / h, at h =
/// 2^-14 and u = 2^-64 some 1e-9 of functions whose third derivatives are of the order of 1.
template <class Loss>
LongMatrix differences(LongMatrix x, const Loss& loss) {
  const long double h = 0x1p-14L;
  LongMatrix g(x.rows(), x.cols());
  for (Eigen::Index i = 0; i < x.rows(); ++i)
    for (Eigen::Index j = 0; j < x.cols(); ++j) {
      const long double at = x(i, j);
      x(i, j) = at + h;
      const long double above = loss(x);
      x(i, j) = at - h;
      g(i, j) = (above - loss(x)) / (2 * h);
      x(i, j) = at;
    }
  return g;
}

double error(const Eigen::MatrixXd& a, const LongMatrix& b) {
  return static_cast<double>((a.cast<long double>() - b).cwiseAbs().maxCoeff());
}

/// Exact scores: no noise.
RandomScores scores_of(Random& random, std::int64_t n) {
  RandomScores s(random, n, random.in(1, 4), random.in(1, 3), 1, 1.0);
  return s;
}

}  // namespace

TEST_CASE("The gradient of conv-basis attention is that of attention", "[conv_basis]") {
  Random random(14);
  for (int i = 0; i < 20; ++i) {
    const std::int64_t n = random.in(8, 24);
    const RandomScores s = scores_of(random, n);
    const double scale = random.uniform(0.3, 1.2);
    const Eigen::MatrixXd v = random.normal(n, random.in(1, 4)),
                          target = random.normal(n, v.cols());
    // all columns: the approximation is exact, so that only the gradient is looked at
    std::vector<std::int64_t> all;
    for (std::int64_t j = 0; j < n; ++j) all.push_back(j);
    const AttentionMatrix f(basis_from_columns(ScoreColumns(s.q, s.k, scale), all));
    const AttentionGradient g = attention_gradient(f, s.q, s.k, v, scale, f.times(v) - target);

    const LongMatrix q = s.q.cast<long double>(), k = s.k.cast<long double>();
    const LongMatrix values = v.cast<long double>(), e = target.cast<long double>();
    const double tolerance = 1e-6 * (1 + std::max({g.q.norm(), g.k.norm(), g.v.norm()}));
    CHECK(error(g.q, differences(q, [&](const LongMatrix& x) {
                  return loss_of(x, k, values, e, scale);
                })) <= tolerance);
    CHECK(error(g.k, differences(k, [&](const LongMatrix& x) {
                  return loss_of(q, x, values, e, scale);
                })) <= tolerance);
    CHECK(error(g.v, differences(values, [&](const LongMatrix& x) {
                  return loss_of(q, k, x, e, scale);
                })) <= tolerance);

    // the paper's loss, in X with scores A1 X A2ᵀ: here A1 X = scale Q
    const Eigen::MatrixXd x = random.normal(s.q.cols(), s.q.cols());
    const Eigen::MatrixXd a1 = s.q, a2 = s.k;
    const Eigen::MatrixXd a1x = a1 * x;
    const AttentionMatrix fx(basis_from_columns(ScoreColumns(a1x, a2, 1), all));
    const AttentionLoss loss = attention_loss(fx, a1, a2, v, target);
    const LongMatrix a1_long = a1.cast<long double>();
    const auto in_x = [&](const LongMatrix& p) { return loss_of(a1_long * p, k, values, e, 1); };
    const LongMatrix wide = x.cast<long double>();
    CHECK(std::abs(loss.loss - double(in_x(wide))) <= 1e-10 * (1 + loss.loss));
    CHECK(error(loss.gradient, differences(wide, in_x)) <= 1e-6 * (1 + loss.gradient.norm()));
  }
}

TEST_CASE("With few terms the gradient is the dense one to rounding", "[conv_basis]") {
  Random random(15);
  for (int i = 0; i < 50; ++i) {
    const std::int64_t n = random.in(16, 96), terms = random.in(1, 4);
    // small scores: the bound below has the normalizer squared
    const ConvBasis large = RandomBasis(random, n, terms).basis();
    ConvBasis h(n);
    for (std::int64_t t = 0; t < terms; ++t) h.add_column(large.column(t) / 8);
    const AttentionMatrix f(h);
    const Eigen::MatrixXd q = random.normal(n, 3), k = random.normal(n, 3);
    const Eigen::MatrixXd v = random.normal(n, 2), dy = random.normal(n, 2);
    const AttentionGradient g = attention_gradient(f, q, k, v, 0.7, dy);

    const LongMatrix a = causal_softmax(h.dense().cast<long double>());
    const LongMatrix lq = q.cast<long double>(), lk = k.cast<long double>();
    const LongMatrix lv = v.cast<long double>(), ldy = dy.cast<long double>();
    const LongMatrix dp = ldy * lv.transpose();
    LongMatrix ds = a.cwiseProduct(dp);
    const auto r = ds.rowwise().sum().eval();
    ds -= r.asDiagonal() * a;
    // Every product of f errs by at most terms + 1 convolutions' bounds, of columns of at most 1
    // and at most n entries, over the smallest normalizer, once more for the normalizer itself;
    // d_v + 1 such products, weighted by dY, V and Q or K.
    const double one = 2 * double(terms + 1) * double(n) *
                       convolution_roundoff(transform_length(2 * n)) /
                       std::pow(std::min(1.0, f.normalizer().minCoeff()), 2);
    const auto size = [](const Eigen::MatrixXd& m) { return m.cwiseAbs().maxCoeff(); };
    const double tolerance =
        2 * 3 * double(n) * one * size(dy) * size(v) * std::max({size(q), size(k), 1.0});
    CHECK(error(g.q, 0.7 * (ds * lk)) <= tolerance);
    CHECK(error(g.k, 0.7 * (ds.transpose() * lq)) <= tolerance);
    CHECK(error(g.v, a.transpose() * ldy) <= tolerance);
    CHECK(tolerance < 1e-3);
  }
}

TEST_CASE("Gradients need operands that fit", "[conv_basis]") {
  Random random(16);
  const AttentionMatrix f(RandomBasis(random, 6, 2).basis());
  const Eigen::MatrixXd a = random.normal(6, 2), b = random.normal(5, 2), c = random.normal(6, 3);
  const auto gradient = [&](const auto& q, const auto& k, const auto& v,
                            const auto& dy) -> std::string {
    return error_of([&] { return attention_gradient(f, q, k, v, 1, dy); }).what();
  };
  CHECK(gradient(b, a, a, a) == "q.rows: expected 6 (size of f), got 5");
  CHECK(gradient(a, b, a, a) == "k.rows: expected 6 (size of f), got 5");
  CHECK(gradient(a, c, a, a) == "k.cols: expected 2 (q.cols), got 3");
  CHECK(gradient(a, a, b, a) == "v.rows: expected 6 (size of f), got 5");
  CHECK(gradient(a, a, a, b) == "out_gradient.rows: expected 6 (size of f), got 5");
  CHECK(gradient(a, a, a, c) == "out_gradient.cols: expected 2 (v.cols), got 3");
  const auto loss = [&](const auto& a1, const auto& a2, const auto& v,
                        const auto& e) -> std::string {
    return error_of([&] { return attention_loss(f, a1, a2, v, e); }).what();
  };
  CHECK(loss(b, a, a, a) == "a1.rows: expected 6 (size of f), got 5");
  CHECK(loss(a, b, a, a) == "a2.rows: expected 6 (size of f), got 5");
  CHECK(loss(a, a, b, b) == "v.rows: expected 6 (size of f), got 5");
  CHECK(loss(a, a, a, b) == "target.rows: expected 6 (v.rows), got 5");
  CHECK(loss(a, a, a, c) == "target.cols: expected 2 (v.cols), got 3");
}

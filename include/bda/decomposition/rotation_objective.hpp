#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/head_span.hpp"
#include "bda/linalg/cholesky.hpp"

namespace bda::inline v0 {

/// What RotationObjective adds to the sum of alpha², to guide a search. Both in units in which
/// random directions have about 1.
struct Smoothing {
  double ridge = 0;   // added to the eigenvalues of X Xᵀ: no pole where a basis is dependent
  double weight = 0;  // of the mean of 1 + |C_j|²: keeps away from dependent bases and large C
};

/// Sum over heads of alpha² (noise.hpp) as a function of the basis directions: orthonormal columns
/// A [d, m], of which each head uses r consecutive ones.
///
/// Per head, with its span U and K = N Nᵀ (HeadSpan), X = its columns of Aᵀ times U, [r, r]:
///   Z = (X Xᵀ + ridge r / d I)⁻¹, z = diag Z, a = diag(X K Xᵀ) + weight / d, and it adds a·z.
/// Without smoothing, z_j = 1 + |C_j|² and a_j = |B_j|² / |W|_F².
///
/// Real is the precision of the search. One value with gradient costs about 12 n d r² operations.
template <class Real>
class RotationObjective {
 public:
  using Matrix = linalg::RowMatrix<Real>;
  using Vector = Eigen::Matrix<Real, Eigen::Dynamic, 1>;

  /// `columns` is m, the number of columns of A.
  RotationObjective(Eigen::Index columns, int threads) : columns_(columns), threads_(threads) {}

  /// Adds heads that use columns [first, first + r).
  void add(const std::vector<HeadSpan>& heads, Eigen::Index first) {
    for (const HeadSpan& head : heads)
      terms_.push_back({head.span.cast<Real>(),
                        linalg::multiply_transposed(head.weight, head.weight).template cast<Real>(),
                        first});
  }

  [[nodiscard]] std::size_t heads() const { return terms_.size(); }

  /// The value at A, and its gradient [d, m] with respect to all entries of A (not projected).
  /// Infinity, with no meaning in `gradient`, where some X is singular. The same bits for any
  /// number of threads.
  double operator()(const Matrix& a, Smoothing smoothing, Matrix& gradient) const {
    const auto count = static_cast<std::int64_t>(terms_.size());
    std::vector<double> values(terms_.size());
    std::vector<Matrix> factors(terms_.size());  // P [r, r]: a head's gradient is 2 U Pᵀ
    parallel_for(count, threads_, [&](std::int64_t t) {
      const auto i = static_cast<std::size_t>(t);
      values[i] = evaluate(terms_[i], a, smoothing, factors[i]);
    });
    // Threads take rows, so that each entry is summed over heads in their order.
    gradient.resize(a.rows(), columns_);
    for_blocks(a.rows(), threads_, [&](Eigen::Index row, Eigen::Index size) {
      auto out = gradient.middleRows(row, size);
      out.setZero();
      for (std::size_t i = 0; i < terms_.size(); ++i)
        linalg::add_product_transposed(out.middleCols(terms_[i].first, factors[i].rows()),
                                       terms_[i].span.middleRows(row, size), factors[i], Real(2));
    });
    double total = 0;
    for (double value : values) total += value;
    return total;
  }

  /// Calls body(first, size) for consecutive blocks of [0, extent): the same for any `threads`.
  template <class Body>
  static void for_blocks(Eigen::Index extent, int threads, const Body& body) {
    constexpr Eigen::Index kBlock = 64;
    parallel_for((extent + kBlock - 1) / kBlock, threads,
                 [&](std::int64_t b) { body(b * kBlock, std::min(kBlock, extent - b * kBlock)); });
  }

 private:
  struct Term {
    Matrix span;         // U [d, r]
    Matrix weight;       // K [r, r]
    Eigen::Index first;  // of its columns of A
  };

  static double evaluate(const Term& term, const Matrix& a, Smoothing smoothing, Matrix& factor) {
    const Eigen::Index r = term.span.cols();
    const double scale = 1.0 / static_cast<double>(term.span.rows());
    const auto ridge = static_cast<Real>(smoothing.ridge * scale * static_cast<double>(r));
    const auto floor = static_cast<Real>(smoothing.weight * scale);
    const Matrix x = linalg::transposed_multiply(a.middleCols(term.first, r), term.span);
    Matrix gram = linalg::multiply_transposed(x, x);
    gram.diagonal().array() += ridge;
    const linalg::Cholesky<Real> cholesky(gram);
    if (!cholesky.positive_definite()) {
      factor.setZero(r, r);
      return std::numeric_limits<double>::infinity();
    }
    const Matrix z = cholesky.divide(Matrix::Identity(r, r));
    const Vector noise = z.diagonal();
    factor = linalg::multiply(x, term.weight);
    Vector energy(r);
    Matrix scaled = z;
    for (Eigen::Index i = 0; i < r; ++i) {
      energy[i] = factor.row(i).dot(x.row(i)) + floor;
      factor.row(i) *= noise[i];
      scaled.row(i) *= energy[i];
    }
    linalg::add_product(factor, linalg::multiply(z, scaled), x, Real(-1));
    const double value = energy.template cast<double>().dot(noise.template cast<double>());
    return value >= 0 ? value : std::numeric_limits<double>::infinity();
  }

  Eigen::Index columns_;
  int threads_;
  std::vector<Term> terms_;
};

}  // namespace bda::inline v0

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "bda/linalg/triangular.hpp"

namespace bda::inline v0::linalg {

/// A = L Lᵀ for a symmetric positive definite A [r, r], of which the lower triangle is read.
template <class S>
class Cholesky {
 public:
  explicit Cholesky(RowMatrix<S> a) : lower_(std::move(a)) {
    constexpr Eigen::Index kBlock = 32;
    const Eigen::Index r = lower_.rows();
    for (Eigen::Index begin = 0; begin < r && positive_definite_; begin += kBlock) {
      const Eigen::Index size = std::min(kBlock, r - begin), later = r - begin - size;
      factor_block(begin, size);
      auto below = lower_.block(begin + size, begin, later, size);
      const RowMatrix<S> block = lower_.block(begin, begin, size, size).transpose();
      divide_by_triangle<Triangle::kUpper>(below, block);
      const RowMatrix<S> panel = below;
      add_product_transposed(lower_.bottomRightCorner(later, later), panel, panel, S(-1));
    }
    for (Eigen::Index i = 0; i < r; ++i) lower_.row(i).tail(r - 1 - i).setZero();
  }

  [[nodiscard]] bool positive_definite() const { return positive_definite_; }

  /// Lᵀ
  [[nodiscard]] RowMatrix<S> upper() const { return lower_.transpose(); }

  /// B A⁻¹ for B [n, r].
  [[nodiscard]] RowMatrix<S> divide(RowMatrix<S> b) const {
    divide_by_triangle<Triangle::kUpper>(b, upper());
    divide_by_triangle<Triangle::kLower>(b, lower_);
    return b;
  }

 private:
  /// Factorises a diagonal block from which what precedes it has been taken off.
  void factor_block(Eigen::Index begin, Eigen::Index size) {
    auto a = lower_.block(begin, begin, size, size);
    for (Eigen::Index i = 0; i < size; ++i)
      for (Eigen::Index j = 0; j <= i; ++j) {
        S rest = a(i, j);
        for (Eigen::Index k = 0; k < j; ++k) rest -= a(i, k) * a(j, k);
        if (j < i) {
          a(i, j) = rest / a(j, j);
        } else {
          if (!(rest > 0)) positive_definite_ = false;
          a(i, i) = std::sqrt(rest);
        }
      }
  }

  RowMatrix<S> lower_;
  bool positive_definite_ = true;
};

/// An r x r factor L with LᵀL = AᵀA, for A [m, r]: every norm of A times something equals that of
/// L times it, so a tall factor can be replaced by its condensed form wherever only norms matter.
/// Semidefinite input is fine. Costs m r^2 and squares A's condition: for norms, not for solving.
template <class S>
RowMatrix<double> condense(const RowMatrix<S>& a) {
  // Cholesky with the largest pivot next, row by row of L; what is left is symmetric.
  RowMatrix<double> left = gram<S>(a).template cast<double>();
  RowMatrix<double> factor = RowMatrix<double>::Zero(a.cols(), a.cols());
  // Below this there is only the rounding of the Gram matrix, which need not be semidefinite.
  const double noise = static_cast<double>(a.cols()) * std::numeric_limits<S>::epsilon() *
                       left.diagonal().maxCoeff();
  for (Eigen::Index k = 0; k < a.cols(); ++k) {
    Eigen::Index pivot = 0;
    const double largest = left.diagonal().maxCoeff(&pivot);
    if (!(largest > noise)) break;
    factor.row(k) = left.row(pivot) / std::sqrt(largest);
    for (Eigen::Index i = 0; i < a.cols(); ++i) {
      const double own = factor(k, i);
      left.row(i) -= own * factor.row(k);
    }
    left(pivot, pivot) = 0;  // or what rounding leaves
  }
  return factor;
}

}  // namespace bda::inline v0::linalg

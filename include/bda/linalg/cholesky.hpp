#pragma once

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>

#include "bda/linalg/triangular.hpp"

namespace bda::inline v0::linalg {

/// A = L Lᵀ for a symmetric positive definite A [r, r], of which the lower triangle is read.
template <class S>
class Cholesky {
 public:
  explicit Cholesky(const RowMatrix<S>& a) : llt_(a) {}

  [[nodiscard]] bool positive_definite() const { return llt_.info() == Eigen::Success; }

  /// Lᵀ; zero below the diagonal.
  [[nodiscard]] RowMatrix<S> upper() const {
    RowMatrix<S> u = llt_.matrixLLT().transpose();
    for (Eigen::Index i = 0; i < u.rows(); ++i) u.row(i).head(i).setZero();
    return u;
  }

  /// B A⁻¹ for B [n, r].
  [[nodiscard]] RowMatrix<S> divide(RowMatrix<S> b) const {
    divide_by_triangle<Triangle::kUpper>(b, upper());
    divide_by_triangle<Triangle::kLower>(b, llt_.matrixLLT());
    return b;
  }

 private:
  Eigen::LLT<RowMatrix<S>, Eigen::Lower> llt_;
};

/// An r x r factor L with LᵀL = AᵀA, for A [m, r]: every norm of A times something equals that of
/// L times it, so a tall factor can be replaced by its condensed form wherever only norms matter.
/// Semidefinite input is fine. Costs m r^2 and squares A's condition: for norms, not for solving.
template <class S>
RowMatrix<double> condense(const RowMatrix<S>& a) {
  const Eigen::LDLT<RowMatrix<double>, Eigen::Lower> ldlt(
      RowMatrix<double>(gram<S>(a).template cast<double>()));
  // gram = Pᵀ L D Lᵀ P, L unit lower triangular
  RowMatrix<double> factor = ldlt.matrixLDLT().transpose();
  for (Eigen::Index i = 0; i < factor.rows(); ++i) {
    factor.row(i).head(i).setZero();
    factor(i, i) = 1;
    factor.row(i) *= std::sqrt(std::max(ldlt.vectorD()[i], 0.0));
  }
  // P swaps rows one after the other; its transpose on the right does so with columns, backwards
  const auto& swaps = ldlt.transpositionsP().indices();
  for (Eigen::Index i = swaps.size() - 1; i >= 0; --i) factor.col(i).swap(factor.col(swaps[i]));
  return factor;
}

}  // namespace bda::inline v0::linalg

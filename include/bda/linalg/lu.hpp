#pragma once

#include <Eigen/LU>
#include <utility>

#include "bda/linalg/triangular.hpp"

namespace bda::inline v0::linalg {

/// LU factorisation with partial pivoting of a square A.
template <class S>
class Lu {
 public:
  explicit Lu(const RowMatrix<S>& a) : lu_(a) {}

  /// An estimate of 1 / (|A| |A⁻¹|) in the 1-norm.
  [[nodiscard]] S reciprocal_condition() const {
    // Eigen's estimate divides by the pivots, and NaN would go unnoticed.
    if (!(lu_.matrixLU().diagonal().cwiseAbs().minCoeff() > 0)) return 0;
    return lu_.rcond();
  }

  /// B A⁻¹ for B [n, r]. Inf or NaN where A is singular.
  [[nodiscard]] RowMatrix<S> divide(RowMatrix<S> b) const {
    divide_by_triangle<Triangle::kUpper>(b, lu_.matrixLU());
    divide_by_triangle<Triangle::kUnitLower>(b, lu_.matrixLU());
    // P A = L U, so that B A⁻¹ = (B U⁻¹ L⁻¹) P
    const auto& order = lu_.permutationP().indices();
    RowMatrix<S> quotient(b.rows(), b.cols());
    for (Eigen::Index i = 0; i < b.rows(); ++i)
      for (Eigen::Index j = 0; j < b.cols(); ++j) quotient(i, j) = b(i, order[j]);
    return quotient;
  }

  [[nodiscard]] RowMatrix<S> inverse() const {
    return divide(RowMatrix<S>::Identity(lu_.rows(), lu_.cols()));
  }

 private:
  Eigen::PartialPivLU<RowMatrix<S>> lu_;
};

}  // namespace bda::inline v0::linalg

#pragma once

#include <Eigen/Cholesky>
#include <type_traits>

#include "bda/linalg/eigen.hpp"

namespace bda::inline v0::linalg {

/// AᵀA for A [m, r], multiplied out in `Work`.
template <class Work, class S>
Eigen::MatrixXd gram(const RowMatrix<S>& a) {
  using Mat = Eigen::Matrix<Work, Eigen::Dynamic, Eigen::Dynamic>;
  Mat lower = Mat::Zero(a.cols(), a.cols());
  if constexpr (std::is_same_v<Work, S>)
    lower.template selfadjointView<Eigen::Lower>().rankUpdate(a.transpose());
  else
    lower.template selfadjointView<Eigen::Lower>().rankUpdate(
        RowMatrix<Work>(a.template cast<Work>()).transpose());
  lower.template triangularView<Eigen::StrictlyUpper>() = lower.transpose();
  return lower.template cast<double>();
}

/// An r x r factor L with LᵀL = AᵀA, for A [m, r]: every norm of A times something equals that of
/// L times it, so a tall factor can be replaced by its condensed form wherever only norms matter.
/// Semidefinite input is fine. Costs m r^2 and squares A's condition: for norms, not for solving.
template <class S>
RowMatrix<S> condense(const RowMatrix<S>& a) {
  using Mat = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;
  const Eigen::LDLT<Mat, Eigen::Lower> ldlt(gram<S>(a).template cast<S>());
  // gram = Pᵀ U^T D U P, U unit upper triangular
  RowMatrix<S> factor = RowMatrix<S>::Identity(a.cols(), a.cols());
  factor = ldlt.transpositionsP() * factor;
  factor = ldlt.matrixU() * factor;
  return ldlt.vectorD().cwiseMax(S(0)).cwiseSqrt().asDiagonal() * factor;
}

}  // namespace bda::inline v0::linalg

#pragma once

#include <Eigen/Cholesky>

#include "bda/linalg/eigen.hpp"

namespace bda::inline v0::linalg {

/// An r x r factor L with LᵀL = AᵀA, for A [m, r]: every norm of A times something equals that of
/// L times it, so a tall factor can be replaced by its condensed form wherever only norms matter.
/// Semidefinite input is fine. Costs m r^2 and squares A's condition: for norms, not for solving.
template <class S>
RowMatrix<S> condense(const RowMatrix<S>& a) {
  Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic> gram =
      Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>::Zero(a.cols(), a.cols());
  gram.template selfadjointView<Eigen::Lower>().rankUpdate(a.transpose());
  const Eigen::LDLT<decltype(gram), Eigen::Lower> ldlt(gram);
  // gram = Pᵀ U^T D U P, U unit upper triangular
  RowMatrix<S> factor = RowMatrix<S>::Identity(a.cols(), a.cols());
  factor = ldlt.transpositionsP() * factor;
  factor = ldlt.matrixU() * factor;
  return ldlt.vectorD().cwiseMax(S(0)).cwiseSqrt().asDiagonal() * factor;
}

}  // namespace bda::inline v0::linalg

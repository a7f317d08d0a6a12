#pragma once

#include <Eigen/QR>

#include "bda/linalg/product.hpp"

namespace bda::inline v0::linalg {

/// A = Q R for A [m, r], m >= r.
template <class S>
struct Qr {
  RowMatrix<S> q;  // [m, columns], orthonormal columns
  RowMatrix<S> r;  // [r, r], upper triangular
};

/// Householder QR; `columns` of Q, from r to m of them.
template <class S>
Qr<S> qr(const RowMatrix<S>& a, Eigen::Index columns) {
  using Columns = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;  // as Householder likes it
  const Eigen::HouseholderQR<Columns> factored(a);
  Columns q = Columns::Identity(a.rows(), columns);
  q.applyOnTheLeft(factored.householderQ());
  Qr<S> result{q, factored.matrixQR().topRows(a.cols())};
  for (Eigen::Index i = 0; i < a.cols(); ++i) result.r.row(i).head(i).setZero();
  return result;
}

}  // namespace bda::inline v0::linalg

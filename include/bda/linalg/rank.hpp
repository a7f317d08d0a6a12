#pragma once

#include <Eigen/QR>
#include <algorithm>
#include <utility>

#include "bda/linalg/qr.hpp"
#include "bda/linalg/triangular.hpp"

/// Matrices that may be rank-deficient.
namespace bda::inline v0::linalg {

/// A = left rightᵀ with orthonormal columns in `left` [m, rank], for any A [m, n], by QR with
/// column pivoting: pivots below `tolerance` of the largest count as zero.
template <class S>
struct RankFactors {
  RowMatrix<S> left;   // [m, rank]
  RowMatrix<S> right;  // [n, rank]
  [[nodiscard]] Eigen::Index rank() const { return left.cols(); }
};

template <class S>
RankFactors<S> rank_factors(const RowMatrix<S>& a, S tolerance) {
  using Columns = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;
  Eigen::ColPivHouseholderQR<Columns> factored(a.rows(), a.cols());
  factored.setThreshold(tolerance);
  factored.compute(a);
  const Eigen::Index rank = factored.rank();
  Columns q = Columns::Identity(a.rows(), rank);
  q.applyOnTheLeft(factored.householderQ());
  RankFactors<S> result{q, RowMatrix<S>::Zero(a.cols(), rank)};
  // A P = Q [T; 0], row k of T reaching from k
  for (Eigen::Index j = 0; j < a.cols(); ++j)
    for (Eigen::Index k = 0; k < std::min(j + 1, rank); ++k)
      result.right(factored.colsPermutation().indices()[j], k) = factored.matrixQR()(k, j);
  return result;
}

/// The pseudo-inverse of a square A, ready to be multiplied by.
template <class S>
class PseudoInverse {
 public:
  PseudoInverse(const RowMatrix<S>& a, S tolerance) {
    // Aᵀ = left rightᵀ and right = Q R, so that A⁺ = left R⁻¹ Qᵀ. Pivoting takes A's rows.
    RankFactors<S> factors = rank_factors<S>(a.transpose(), tolerance);
    left_ = std::move(factors.left);
    right_ = qr(factors.right, factors.right.cols());
  }

  [[nodiscard]] Eigen::Index rank() const { return left_.cols(); }

  /// B A⁺: the X of smallest norm among those with the smallest |X A - B|.
  [[nodiscard]] RowMatrix<S> divide(const RowMatrix<S>& b) const {
    RowMatrix<S> x = multiply(b, left_);
    divide_by_triangle<Triangle::kUpper>(x, right_.r);
    return multiply_transposed(x, right_.q);
  }

 private:
  RowMatrix<S> left_;
  Qr<S> right_;
};

}  // namespace bda::inline v0::linalg

#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "bda/linalg/qr.hpp"
#include "bda/linalg/triangular.hpp"

/// Matrices that may be rank-deficient.
namespace bda::inline v0::linalg {

/// A = left rightᵀ for any A [m, n]: the numerical rank, its range and its row space.
template <class S>
struct RankFactors {
  RowMatrix<S> left;   // [m, rank], orthonormal columns
  RowMatrix<S> right;  // [n, rank]
  [[nodiscard]] Eigen::Index rank() const { return left.cols(); }
};

/// Gram-Schmidt that takes the longest remainder of a column next, and ends where that is at most
/// `tolerance` of the longest column.
template <class S>
RankFactors<S> rank_factors(const RowMatrix<S>& a, S tolerance) {
  const Eigen::Index m = a.rows(), n = a.cols(), full = std::min(m, n);
  RowMatrix<S> rest = a.transpose();  // a column of A a row
  RowMatrix<S> directions(full, m), weights(full, n);
  S longest = 0;
  Eigen::Index rank = 0;
  for (; rank < full; ++rank) {
    Eigen::Index pivot = 0;
    const S length = std::sqrt(rest.rowwise().squaredNorm().maxCoeff(&pivot));
    longest = std::max(longest, length);
    if (!(length > tolerance * longest)) break;
    RowMatrix<S> direction = rest.row(pivot) / length;
    const auto known = directions.topRows(rank);  // rounding has left some of them in the remainder
    add_product(direction, multiply_transposed(direction, known), known, S(-1));
    direction.normalize();
    const RowMatrix<S> weight = multiply_transposed(direction, rest);
    for (Eigen::Index j = 0; j < n; ++j) {
      const S share = weight(0, j);
      rest.row(j) -= share * direction.row(0);
    }
    directions.row(rank) = direction;
    weights.row(rank) = weight;
  }
  return {directions.topRows(rank).transpose(), weights.topRows(rank).transpose()};
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

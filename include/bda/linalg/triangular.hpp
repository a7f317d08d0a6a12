#pragma once

#include <Eigen/Core>
#include <algorithm>

#include "bda/linalg/product.hpp"

/// Triangular systems, T on the right of the unknown. The inverses of small diagonal blocks make
/// all the rest products, which run several times faster than substitution.
namespace bda::inline v0::linalg {

enum class Triangle { kLower, kUnitLower, kUpper };  // unit: ones in place of the diagonal

namespace detail {

/// The inverse of a small triangular T, by substitution.
template <Triangle side, class S>
RowMatrix<S> triangular_inverse(const View<const S>& t) {
  const Eigen::Index n = t.rows();
  RowMatrix<S> inverse = RowMatrix<S>::Identity(n, n);
  for (Eigen::Index step = 0; step < n; ++step) {
    const Eigen::Index i = side == Triangle::kUpper ? n - 1 - step : step;
    S* row = &inverse(i, 0);
    for (Eigen::Index known = 0; known < step; ++known) {
      const Eigen::Index k = side == Triangle::kUpper ? n - 1 - known : known;
      const S* other = &inverse(k, 0);
      const S factor = t(i, k);
      for (Eigen::Index j = 0; j < n; ++j) row[j] -= factor * other[j];
    }
    if constexpr (side != Triangle::kUnitLower)
      for (Eigen::Index j = 0; j < n; ++j) row[j] /= t(i, i);
  }
  return inverse;
}

}  // namespace detail

/// X := X T⁻¹ for X [n, r]; only the named triangle of T [r, r] is read. A zero on its diagonal
/// gives Inf or NaN.
template <Triangle side, class X, class T>
void divide_by_triangle(X&& x, const T& t) {
  using S = typename T::Scalar;
  constexpr Eigen::Index kBlock = 32;
  const Eigen::Index r = t.rows(), blocks = (r + kBlock - 1) / kBlock;
  RowMatrix<S> right_side;
  for (Eigen::Index step = 0; step < blocks; ++step) {
    const Eigen::Index begin = (side == Triangle::kUpper ? step : blocks - 1 - step) * kBlock;
    const Eigen::Index size = std::min(kBlock, r - begin), end = begin + size;
    auto part = x.middleCols(begin, size);
    if constexpr (side == Triangle::kUpper)
      add_product(part, x.leftCols(begin), t.block(0, begin, begin, size), S(-1));
    else
      add_product(part, x.rightCols(r - end), t.block(end, begin, r - end, size), S(-1));
    right_side = part;
    set_product(part, right_side,
                detail::triangular_inverse<side, S>(view(t.block(begin, begin, size, size))));
  }
}

}  // namespace bda::inline v0::linalg

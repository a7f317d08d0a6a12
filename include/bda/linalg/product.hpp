#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <type_traits>

#include "bda/linalg/eigen.hpp"

/// The matrix products of the offline code. Eigen compiles a product anew for every combination of
/// operand types, at about a second each; through these there are three a precision.
namespace bda::inline v0::linalg {

/// A row-major matrix or a block of one, as every operand here is passed on.
template <class S>
using View = Eigen::Map<
    std::conditional_t<std::is_const_v<S>, const RowMatrix<std::remove_const_t<S>>, RowMatrix<S>>,
    Eigen::Unaligned, Eigen::OuterStride<>>;

template <class M>
auto view(M&& m) {
  using S = std::remove_pointer_t<decltype(m.data())>;
  static_assert(std::decay_t<M>::IsRowMajor);
  return View<S>(m.data(), m.rows(), m.cols(), Eigen::OuterStride<>(m.outerStride()));
}

namespace detail {

template <class S>
void add_product(View<S> out, View<const S> a, View<const S> b, S scale) {
  out.noalias() += (scale * a) * b;
}
template <class S>
void add_transposed_product(View<S> out, View<const S> a, View<const S> b, S scale) {
  out.noalias() += (scale * a.transpose()) * b;
}
template <class S>
void add_product_transposed(View<S> out, View<const S> a, View<const S> b, S scale) {
  out.noalias() += (scale * a) * b.transpose();
}

}  // namespace detail

/// out += scale A B. Like the others, `out` must not overlap the factors.
template <class C, class A, class B, class S = typename A::Scalar>
void add_product(C&& out, const A& a, const B& b, S scale = 1) {
  detail::add_product<S>(view(out), view(a), view(b), scale);
}

/// out += scale Aᵀ B
template <class C, class A, class B, class S = typename A::Scalar>
void add_transposed_product(C&& out, const A& a, const B& b, S scale = 1) {
  detail::add_transposed_product<S>(view(out), view(a), view(b), scale);
}

/// out += scale A Bᵀ
template <class C, class A, class B, class S = typename A::Scalar>
void add_product_transposed(C&& out, const A& a, const B& b, S scale = 1) {
  detail::add_product_transposed<S>(view(out), view(a), view(b), scale);
}

/// A B
template <class A, class B, class S = typename A::Scalar>
RowMatrix<S> multiply(const A& a, const B& b) {
  RowMatrix<S> out = RowMatrix<S>::Zero(a.rows(), b.cols());
  add_product(out, a, b);
  return out;
}

/// Aᵀ B
template <class A, class B, class S = typename A::Scalar>
RowMatrix<S> transposed_multiply(const A& a, const B& b) {
  RowMatrix<S> out = RowMatrix<S>::Zero(a.cols(), b.cols());
  add_transposed_product(out, a, b);
  return out;
}

/// A Bᵀ
template <class A, class B, class S = typename A::Scalar>
RowMatrix<S> multiply_transposed(const A& a, const B& b) {
  RowMatrix<S> out = RowMatrix<S>::Zero(a.rows(), b.rows());
  add_product_transposed(out, a, b);
  return out;
}

/// AᵀA for A [m, r], multiplied out in `Work`.
template <class Work, class S>
RowMatrix<Work> gram(const RowMatrix<S>& a) {
  const Eigen::Index r = a.cols(), half = r / 2;
  RowMatrix<Work> g = RowMatrix<Work>::Zero(r, r);
  RowMatrix<Work> converted;
  constexpr Eigen::Index kBlock = 256;  // rows: they stay in the second level of cache
  for (Eigen::Index begin = 0; begin < a.rows(); begin += kBlock) {
    const Eigen::Index n = std::min(kBlock, a.rows() - begin);
    const auto add = [&](const auto& rows) {
      // of the four quarters one is the transpose of another
      const auto first = rows.leftCols(half), second = rows.rightCols(r - half);
      add_transposed_product(g.topLeftCorner(half, half), first, first);
      add_transposed_product(g.bottomRows(r - half), second, rows);
    };
    if constexpr (std::is_same_v<Work, S>) {
      add(a.middleRows(begin, n));
    } else {
      converted = a.middleRows(begin, n).template cast<Work>();
      add(converted.middleRows(0, n));
    }
  }
  g.topRightCorner(half, r - half) = g.bottomLeftCorner(r - half, half).transpose();
  return g;
}

}  // namespace bda::inline v0::linalg

#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <type_traits>

#include "bda/linalg/blocked_product.hpp"
#include "bda/linalg/eigen.hpp"

/// The matrix products of the offline code. Eigen compiles a product anew for every combination of
/// operand types, at about a second each; through these there are three a precision.
namespace bda::inline v0::linalg {

template <class M>
auto view(M&& m) {
  using S = std::remove_pointer_t<decltype(m.data())>;
  static_assert(std::decay_t<M>::IsRowMajor);
  return View<S>(m.data(), m.rows(), m.cols(), Eigen::OuterStride<>(m.outerStride()));
}

namespace detail {

/// out = scale op(A) op(B), or += with `add`.
template <Form a_form, Form b_form, class S>
void product(View<S> out, View<const S> a, View<const S> b, S scale, bool add) {
  const auto vector_product = [&](auto&& to, const auto& left, const auto& right) {
    if (!add) to.setZero();
    to.noalias() += (scale * left) * right;
  };
  const auto with_b = [&](const auto& use) {
    if constexpr (b_form == Form::kPlain)
      use(b);
    else
      use(b.transpose());
  };
  const auto with_a = [&](const auto& use) {
    if constexpr (a_form == Form::kPlain)
      use(a);
    else
      use(a.transpose());
  };
  if (out.size() == 0) return;
  if (a.size() == 0) {
    if (!add) out.setZero();
  } else if (out.rows() == 1) {  // bound by reading the other factor, which packing does twice
    with_a([&](const auto& x) {
      with_b([&](const auto& y) { vector_product(out.row(0), x.row(0), y); });
    });
  } else if (out.cols() == 1) {
    with_a([&](const auto& x) {
      with_b([&](const auto& y) { vector_product(out.col(0), x, y.col(0)); });
    });
  } else {
    blocked_product<a_form, b_form, S>(out, a, b, scale, add);
  }
}

}  // namespace detail

/// out += scale A B. Like the others, `out` must not overlap the factors.
template <class C, class A, class B, class S = typename A::Scalar>
void add_product(C&& out, const A& a, const B& b, S scale = 1) {
  detail::product<detail::Form::kPlain, detail::Form::kPlain, S>(view(out), view(a), view(b), scale,
                                                                 true);
}

/// out += scale Aᵀ B
template <class C, class A, class B, class S = typename A::Scalar>
void add_transposed_product(C&& out, const A& a, const B& b, S scale = 1) {
  detail::product<detail::Form::kTransposed, detail::Form::kPlain, S>(view(out), view(a), view(b),
                                                                      scale, true);
}

/// out += scale A Bᵀ
template <class C, class A, class B, class S = typename A::Scalar>
void add_product_transposed(C&& out, const A& a, const B& b, S scale = 1) {
  detail::product<detail::Form::kPlain, detail::Form::kTransposed, S>(view(out), view(a), view(b),
                                                                      scale, true);
}

/// out = A B
template <class C, class A, class B, class S = typename A::Scalar>
void set_product(C&& out, const A& a, const B& b) {
  detail::product<detail::Form::kPlain, detail::Form::kPlain, S>(view(out), view(a), view(b), 1,
                                                                 false);
}

/// A B
template <class A, class B, class S = typename A::Scalar>
RowMatrix<S> multiply(const A& a, const B& b) {
  RowMatrix<S> out(a.rows(), b.cols());
  set_product(out, a, b);
  return out;
}

/// Aᵀ B
template <class A, class B, class S = typename A::Scalar>
RowMatrix<S> transposed_multiply(const A& a, const B& b) {
  RowMatrix<S> out(a.cols(), b.cols());
  detail::product<detail::Form::kTransposed, detail::Form::kPlain, S>(view(out), view(a), view(b),
                                                                      1, false);
  return out;
}

/// A Bᵀ
template <class A, class B, class S = typename A::Scalar>
RowMatrix<S> multiply_transposed(const A& a, const B& b) {
  RowMatrix<S> out(a.rows(), b.rows());
  detail::product<detail::Form::kPlain, detail::Form::kTransposed, S>(view(out), view(a), view(b),
                                                                      1, false);
  return out;
}

/// The lower triangle of out += AᵀA; what is above it becomes undefined. See `padded`.
template <class C, class A, class S = typename A::Scalar>
void add_gram(C&& out, const A& a) {
  if (a.size() > 0) detail::add_gram<S>(view(out), view(a));
}

/// How wide rows of `cols` values should be kept, so that a column of them does not meet itself in
/// the same few lines of a cache.
template <class S>
constexpr Eigen::Index padded(Eigen::Index cols) {
  constexpr auto kLine = static_cast<Eigen::Index>(64 / sizeof(S));
  const Eigen::Index lines = (cols + kLine - 1) / kLine;
  return (lines / 2 * 2 + 1) * kLine;  // an odd number
}

/// The upper triangle becomes the transpose of the lower.
template <class S>
void mirror_lower(RowMatrix<S>& m) {
  for (Eigen::Index i = 0; i < m.rows(); ++i)
    m.row(i).tail(m.cols() - 1 - i) = m.col(i).tail(m.cols() - 1 - i).transpose();
}

/// AᵀA for A [m, r], multiplied out in `Work`.
template <class Work, class S>
RowMatrix<Work> gram(const RowMatrix<S>& a) {
  RowMatrix<Work> g = RowMatrix<Work>::Zero(a.cols(), a.cols());
  RowMatrix<Work> rows;
  constexpr Eigen::Index kBlock = 128;  // they stay in the second level of cache
  for (Eigen::Index begin = 0; begin < a.rows(); begin += kBlock) {
    const Eigen::Index n = std::min(kBlock, a.rows() - begin);
    rows.resize(n, padded<Work>(a.cols()));
    rows.leftCols(a.cols()) = a.middleRows(begin, n).template cast<Work>();
    add_gram(g, rows.leftCols(a.cols()));
  }
  mirror_lower(g);
  return g;
}

}  // namespace bda::inline v0::linalg

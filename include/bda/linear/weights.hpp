#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bda/core/index_set.hpp"
#include "bda/core/matrix.hpp"
#include "bda/linear/factors.hpp"

namespace bda::inline v0::linear {

/// A linear layer y = x W + bias, W [in, out] of rank r, as r of its outputs and what the others
/// are made of: `y_S = x B` and `y_rest = y_S C` (BD paper, pruned models, transposed).
template <class T>
struct BasisWeights {
  IndexSet basis;       // S, r of the outputs
  Matrix<T> b;          // [in, r] = W[:, S]
  Matrix<T> c;          // [r, out - r], columns in the order of basis.rest()
  std::vector<T> bias;  // [out] in the natural order, empty for none

  [[nodiscard]] std::int64_t in_dim() const { return b.rows; }
  [[nodiscard]] std::int64_t out_dim() const { return basis.dim(); }
  [[nodiscard]] std::int64_t rank() const { return basis.size(); }
  /// r (in + out - r), without the bias; also the multiply-adds for each row of x.
  [[nodiscard]] std::int64_t parameters() const { return b.size() + c.size(); }
  [[nodiscard]] std::int64_t bytes() const {
    return (parameters() + static_cast<std::int64_t>(bias.size())) *
           static_cast<std::int64_t>(sizeof(T));
  }
};

/// The same layer as its factors, y = (x left) right + bias: what BD is measured against.
template <class T>
struct FactorWeights {
  Matrix<T> left;       // [in, r]
  Matrix<T> right;      // [r, out]
  std::vector<T> bias;  // [out], empty for none

  [[nodiscard]] std::int64_t in_dim() const { return left.rows; }
  [[nodiscard]] std::int64_t out_dim() const { return right.cols; }
  [[nodiscard]] std::int64_t rank() const { return left.cols; }
  [[nodiscard]] std::int64_t parameters() const { return left.size() + right.size(); }
  [[nodiscard]] std::int64_t bytes() const {
    return (parameters() + static_cast<std::int64_t>(bias.size())) *
           static_cast<std::int64_t>(sizeof(T));
  }
};

namespace detail {

template <class T>
void check_bias(const std::vector<T>& bias, std::int64_t out) {
  if (!bias.empty())
    check::equal("bias.size", static_cast<std::int64_t>(bias.size()), out, "outputs");
}

}  // namespace detail

/// Throws where the extents contradict each other.
template <class T>
void validate(const BasisWeights<T>& w) {
  check::at_least("basis.size", w.rank(), 1);
  check::equal("b.cols", w.b.cols, w.rank(), "basis.size");
  check::equal("c.rows", w.c.rows, w.rank(), "basis.size");
  check::equal("c.cols", w.c.cols, w.out_dim() - w.rank(), "basis.dim - basis.size");
  detail::check_bias(w.bias, w.out_dim());
}
template <class T>
void validate(const FactorWeights<T>& w) {
  check::at_least("left.cols", w.rank(), 1);
  check::equal("right.rows", w.right.rows, w.left.cols, "left.cols");
  detail::check_bias(w.bias, w.out_dim());
}

/// The order in which a layer that does not undo its permutation writes its outputs: [S, rest].
template <class T>
[[nodiscard]] std::vector<std::int64_t> output_order(const BasisWeights<T>& w) {
  std::vector<std::int64_t> order = w.basis.indices();
  const std::vector<std::int64_t> rest = w.basis.rest();
  order.insert(order.end(), rest.begin(), rest.end());
  return order;
}

/// The rows of a weight [in, out] in the order in which its input comes: row i of the result is row
/// order[i]. So the layer before can leave its outputs permuted, with nothing but elementwise
/// operations in between (a norm's gain is to be permuted likewise).
/// Throws unless `order` is a permutation of the rows.
template <class T>
[[nodiscard]] Matrix<T> permuted_rows(const Matrix<T>& w, const std::vector<std::int64_t>& order) {
  check::equal("order.size", static_cast<std::int64_t>(order.size()), w.rows, "rows");
  static_cast<void>(IndexSet(w.rows, order));  // throws on a repeated or missing row
  Matrix<T> out(w.rows, w.cols);
  for (std::int64_t i = 0; i < w.rows; ++i)
    for (std::int64_t j = 0; j < w.cols; ++j) out(i, j) = w(order[static_cast<std::size_t>(i)], j);
  return out;
}

/// The layer for inputs that come in `order`.
template <class T>
[[nodiscard]] BasisWeights<T> with_inputs_in(BasisWeights<T> w,
                                             const std::vector<std::int64_t>& order) {
  w.b = permuted_rows(w.b, order);
  return w;
}
template <class T>
[[nodiscard]] FactorWeights<T> with_inputs_in(FactorWeights<T> w,
                                              const std::vector<std::int64_t>& order) {
  w.left = permuted_rows(w.left, order);
  return w;
}

}  // namespace bda::inline v0::linear

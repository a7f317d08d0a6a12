#pragma once

#include <cstdint>
#include <vector>

#include "bda/core/tensor_view.hpp"
#include "bda/cpu/packing.hpp"
#include "bda/cpu/product.hpp"
#include "bda/cpu/workspace.hpp"
#include "bda/model/attention_weights.hpp"

/// The projection of the Basis Decomposition paper, and the plain one, by the same product.
namespace bda::inline v0::cpu {

/// What `project` needs to know of a projection besides its weights, worked out once at set-up.
template <class C>
struct ProjectionPlan {
  std::vector<std::int64_t> rest;  // the channels that meet the coefficients; empty: plain
  std::vector<C> bias;             // widened

  ProjectionPlan() = default;
  template <class S>
  explicit ProjectionPlan(const KvProjection<S>& p) : bias(p.bias.size()) {
    if (p.basis) rest = p.basis->rest();
    convert(p.bias.data(), bias.data(), static_cast<std::int64_t>(bias.size()));
  }
};

namespace detail {

/// c[b, t, S], gathered into `memory` where S is not a slice.
template <class C>
TensorView<const C, 3> basis_channels(const IndexSet& basis, const TensorView<const C, 3>& c,
                                      C* memory) {
  const std::int64_t batch = c.extent(0), tokens = c.extent(1), width = basis.size();
  if (basis.is_slice())
    return {c.data + basis.offset(), {batch, tokens, width}, {c.stride(0), c.stride(1), 1}};
  RowCursor<const C> from(c, 0);
  C* to = memory;
  for (std::int64_t row = 0; row < batch * tokens; ++row, from.next())
    for (std::int64_t channel : basis.indices()) *to++ = from.data()[channel];
  return {memory, {batch, tokens, width}};
}

}  // namespace detail

/// Takes from `arena` what `project` needs for `rows` = batch * tokens.
template <class C, class S>
C* take_projection_scratch(Arena& arena, const KvProjection<S>& p, std::int64_t rows, int threads) {
  Arena measured;
  if (p.basis && !p.basis->is_slice()) measured.take<C>(rows * p.basis->size());
  take_product_scratch<C>(measured, rows, p.weight.rows, p.weight.cols, threads);
  return arena.take<C>(static_cast<std::int64_t>(measured.required() / sizeof(C)));
}

/// out[b, t, h, :] = c[b, t, :] W_h + bias_h, or with a basis S
/// out[b, t, h, :] = c[b, t, S] + c[b, t, rest] C_h + bias_h (BD paper, section 3).
///
/// c [batch, tokens, kv_dim], out [batch, tokens, heads, width], both with unit stride in the last
/// dimension. The identity part is where the sums begin: it costs no pass of its own.
template <class C, class S>
void project(const KvProjection<S>& p, const ProjectionPlan<C>& plan,
             const TensorView<const C, 3>& c, const TensorView<C, 4>& out, C* scratch,
             int threads) {
  Product<C, S> product;
  product.a = c;
  product.w = {p.weight.data(), {p.weight.rows, p.weight.cols}};
  product.bias = plan.bias.empty() ? nullptr : plan.bias.data();
  product.out = out;
  if (p.basis) {
    product.channels = plan.rest;
    product.identity = detail::basis_channels(*p.basis, c, scratch);
    if (!p.basis->is_slice()) {
      const std::int64_t line = static_cast<std::int64_t>(Arena::kAlignment / sizeof(C));
      scratch += ceil_div(product.rows() * p.basis->size(), line) * line;
    }
  }
  multiply(product, scratch, threads);
}

}  // namespace bda::inline v0::cpu

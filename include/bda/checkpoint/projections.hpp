#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bda/checkpoint/convert.hpp"
#include "bda/checkpoint/weight_reader.hpp"
#include "bda/model/attention_weights.hpp"

/// Attention modules of the usual make: four linear layers, or three of them in one.
namespace bda::inline v0::checkpoint {

/// The projections of one attention module as checkpoints have them: heads side by side, within
/// each head's query and key [rotated | not rotated].
template <class T>
struct Projections {
  Linear<T> q, k, v, o;
};

/// What the four linear layers are called within their module, and which have a bias.
struct ProjectionNames {
  std::string q = "q_proj", k = "k_proj", v = "v_proj", o = "out_proj";
  bool q_bias = true, k_bias = true, v_bias = true, o_bias = true;
};

/// Reads MODULE.q_proj and so on, in the shapes that `c` has.
template <Storage T>
[[nodiscard]] Projections<T> read_projections(const AttentionConfig& c, const std::string& module,
                                              const ProjectionNames& names,
                                              WeightReader<T>& weights) {
  const auto read = [&](const std::string& name, std::int64_t in, std::int64_t out, bool bias) {
    return weights.linear(module + "." + name, in, out, bias);
  };
  return {read(names.q, c.query_dim, c.heads * c.head_dim(), names.q_bias),
          read(names.k, c.kv_dim, c.kv_heads * c.head_dim(), names.k_bias),
          read(names.v, c.kv_dim, c.kv_heads * c.v_dim, names.v_bias),
          read(names.o, c.heads * c.v_dim, c.out_dim, names.o_bias)};
}

/// Columns [groups, group] of a fused layer, those from `offset` on, `width` of each group.
template <Storage T>
[[nodiscard]] Linear<T> take_columns(const Linear<T>& fused, std::int64_t group,
                                     std::int64_t offset, std::int64_t width) {
  Linear<T> part;
  part.weight = detail::take_columns(fused.weight, group, offset, width);
  if (fused.bias.empty()) return part;
  Matrix<T> bias;
  bias.rows = 1;
  bias.cols = static_cast<std::int64_t>(fused.bias.size());
  bias.values = fused.bias;
  part.bias = detail::take_columns(bias, group, offset, width).values;
  return part;
}

/// NAME.weight [width], each plus `offset`: the gain of a norm of heads. The sum is rounded to T
/// once, in 16 bits to about the third digit: as precise as every other number of such a layer, but
/// less than where it is formed in float.
template <Storage T>
[[nodiscard]] std::vector<T> read_gain(WeightReader<T>& weights, const std::string& name,
                                       std::int64_t width, double offset) {
  std::vector<T> gain = weights.vector(name + ".weight", width);
  if (offset != 0)
    for (T& g : gain) g = detail::narrow<T>(offset + static_cast<double>(g));
  return gain;
}

/// The module in the library's layout, where a head is [not rotated | rotated]. `rotated_first`
/// says where the rotated channels are in `p`.
template <Storage T>
[[nodiscard]] AttentionWeights<T> assemble(const AttentionConfig& c, Projections<T> p,
                                           bool rotated_first = true) {
  AttentionWeights<T> a;
  a.config = c;
  const auto rotated_last = [&](T* row) {
    for (std::int64_t h = 0; h < c.heads; ++h)
      std::rotate(row + h * c.head_dim(), row + h * c.head_dim() + c.rope_dim,
                  row + (h + 1) * c.head_dim());
  };
  a.q = std::move(p.q.weight);
  a.q_bias = std::move(p.q.bias);
  if (rotated_first && c.qk_dim > 0 && c.rope_dim > 0) {
    for (std::int64_t i = 0; i < a.q.rows; ++i) rotated_last(&a.q(i, 0));
    if (!a.q_bias.empty()) rotated_last(a.q_bias.data());
  }
  const auto key = [](Linear<T> k) -> KvProjection<T> {
    return {std::move(k.weight), std::move(k.bias), std::nullopt};
  };
  if (c.rope_dim == 0) {
    a.k = key(std::move(p.k));
  } else if (c.qk_dim == 0) {
    a.k_rope = key(std::move(p.k));
  } else {
    a.k = key(take_columns(p.k, c.head_dim(), rotated_first ? c.rope_dim : 0, c.qk_dim));
    a.k_rope = key(take_columns(p.k, c.head_dim(), rotated_first ? 0 : c.qk_dim, c.rope_dim));
  }
  a.v = key(std::move(p.v));
  a.o = std::move(p.o.weight);
  a.o_bias = std::move(p.o.bias);
  return a;
}

/// The shape of multi-head attention without rotary embedding, all widths equal, scaled by the
/// root of the head's width.
[[nodiscard]] inline AttentionConfig multi_head_config(std::int64_t hidden, std::int64_t heads) {
  AttentionConfig c;
  c.query_dim = c.kv_dim = c.out_dim = hidden;
  c.heads = c.kv_heads = heads;
  c.qk_dim = c.v_dim = hidden / heads;
  c.scale = 1 / std::sqrt(static_cast<double>(c.qk_dim));
  return c;
}

}  // namespace bda::inline v0::checkpoint

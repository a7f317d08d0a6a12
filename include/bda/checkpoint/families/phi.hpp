#pragma once

#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/families/gpt_neox.hpp"
#include "bda/checkpoint/projections.hpp"
#include "bda/checkpoint/rope_parameters.hpp"

/// Phi 1, 1.5 and 2: biases everywhere, the first part of each head rotated. The library reads its
/// attention. The QK side is exact on the channels that are not rotated.
namespace bda::inline v0::checkpoint {

/// `model_type` "phi".
struct PhiConfig {
  std::int64_t hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads;
  std::int64_t rotary_dim;  // rotated channels of a head
  RopeConfig rope;
};

namespace detail {

inline PhiConfig read_phi(ConfigFields& fields) {
  require_single_stack(fields);
  ignore_body_fields(fields);
  PhiConfig c{};
  c.hidden_size = fields.extent("hidden_size");
  c.num_hidden_layers = fields.extent("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.num_key_value_heads = fields.find_extent("num_key_value_heads").value_or(c.num_attention_heads);
  require_multiple(fields, "hidden_size", c.hidden_size, "num_attention_heads",
                   c.num_attention_heads);
  require_multiple(fields, "num_attention_heads", c.num_attention_heads, "num_key_value_heads",
                   c.num_key_value_heads);
  fields.require("qk_layernorm", false, "a layer norm of queries and keys is not implemented");
  const double factor = read_partial_rotary_factor(fields, "partial_rotary_factor", 0.5);
  c.rotary_dim = rotated_channels(c.hidden_size / c.num_attention_heads, factor);
  c.rope = read_rope_parameters(fields, RopeStyle::kHalfSplit, c.rotary_dim, {"default", "linear"},
                                {.partial_rotary_factor = factor})
               .rope;
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const PhiConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const PhiConfig&, std::int64_t layer) {
  return "layers." + std::to_string(layer) + ".self_attn";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const PhiConfig&, std::int64_t) {
  return {};
}

[[nodiscard]] inline AttentionConfig attention_config(const PhiConfig& c, std::int64_t) {
  AttentionConfig a = multi_head_config(c.hidden_size, c.num_attention_heads);
  a.kv_heads = c.num_key_value_heads;
  a.qk_dim -= c.rotary_dim;
  a.rope_dim = c.rotary_dim;
  a.rope = c.rope;
  return a;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const PhiConfig& c, const TensorStore& store) {
  return {store, {"model."}, attention_name(c, 0) + ".q_proj.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const PhiConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const AttentionConfig a = attention_config(c, layer);
  return assemble(a, read_projections(a, attention_name(c, layer), {.o = "dense"}, weights));
}

}  // namespace bda::inline v0::checkpoint

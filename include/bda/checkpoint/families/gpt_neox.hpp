#pragma once

#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"
#include "bda/checkpoint/rope_parameters.hpp"

/// GPT-NeoX (arXiv 2204.06745; Pythia): queries, keys and values from one fused layer, the first
/// part of each head rotated. The library reads its attention. The QK side is exact on the channels
/// that are not rotated.
namespace bda::inline v0::checkpoint {

/// `model_type` "gpt_neox".
struct GptNeoxConfig {
  std::int64_t hidden_size, num_hidden_layers, num_attention_heads;
  std::int64_t rotary_dim;  // rotated channels of a head
  bool attention_bias;
  RopeConfig rope;
};

namespace detail {

/// The rotated channels of a head, as transformers rounds them.
inline std::int64_t rotated_channels(std::int64_t head_dim, double factor) {
  return static_cast<std::int64_t>(static_cast<double>(head_dim) * factor);
}

inline GptNeoxConfig read_gpt_neox(ConfigFields& fields) {
  require_single_stack(fields);
  ignore_body_fields(fields);
  fields.ignore({"hidden_dropout", "use_parallel_residual"});
  GptNeoxConfig c{};
  c.hidden_size = fields.extent("hidden_size");
  c.num_hidden_layers = fields.extent("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.attention_bias = fields.flag("attention_bias", true);
  require_multiple(fields, "hidden_size", c.hidden_size, "num_attention_heads",
                   c.num_attention_heads);
  const double factor = read_partial_rotary_factor(fields, "rotary_pct", 0.25);
  c.rotary_dim = rotated_channels(c.hidden_size / c.num_attention_heads, factor);
  c.rope = read_rope_parameters(fields, RopeStyle::kHalfSplit, c.rotary_dim, {"default", "linear"},
                                {.theta_key = "rotary_emb_base", .partial_rotary_factor = factor})
               .rope;
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const GptNeoxConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const GptNeoxConfig&, std::int64_t layer) {
  return "layers." + std::to_string(layer) + ".attention";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const GptNeoxConfig&, std::int64_t) {
  return {};
}

[[nodiscard]] inline AttentionConfig attention_config(const GptNeoxConfig& c, std::int64_t) {
  AttentionConfig a = multi_head_config(c.hidden_size, c.num_attention_heads);
  a.qk_dim -= c.rotary_dim;
  a.rope_dim = c.rotary_dim;
  a.rope = c.rope;
  return a;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const GptNeoxConfig& c, const TensorStore& store) {
  return {store, {"gpt_neox."}, attention_name(c, 0) + ".dense.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const GptNeoxConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const std::string name = attention_name(c, layer);
  const std::int64_t hidden = c.hidden_size, width = hidden / c.num_attention_heads;
  const Linear<T> qkv =
      weights.linear(name + ".query_key_value", hidden, 3 * hidden, c.attention_bias);
  // Its columns are [heads, q | k | v, head width].
  const auto part = [&](std::int64_t i) { return take_columns(qkv, 3 * width, i * width, width); };
  return assemble<T>(attention_config(c, layer),
                     {part(0), part(1), part(2),
                      weights.linear(name + ".dense", hidden, hidden, c.attention_bias)});
}

}  // namespace bda::inline v0::checkpoint

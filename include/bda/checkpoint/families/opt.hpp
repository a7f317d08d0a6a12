#pragma once

#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"

/// OPT (arXiv 2205.01068): multi-head attention with learned positions. The library reads its
/// attention.
namespace bda::inline v0::checkpoint {

/// `model_type` "opt".
struct OptConfig {
  std::int64_t hidden_size, num_hidden_layers, num_attention_heads;
  bool enable_bias;
};

namespace detail {

inline OptConfig read_opt(ConfigFields& fields) {
  require_single_stack(fields);
  ignore_body_fields(fields);
  fields.ignore({"_remove_final_layer_norm", "do_layer_norm_before", "ffn_dim",
                 "layer_norm_elementwise_affine", "word_embed_proj_dim"});
  OptConfig c{};
  c.hidden_size = fields.extent("hidden_size");
  c.num_hidden_layers = fields.extent("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.enable_bias = fields.flag("enable_bias", true);
  require_multiple(fields, "hidden_size", c.hidden_size, "num_attention_heads",
                   c.num_attention_heads);
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const OptConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const OptConfig&, std::int64_t layer) {
  return "decoder.layers." + std::to_string(layer) + ".self_attn";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const OptConfig&, std::int64_t) {
  return {};
}

[[nodiscard]] inline AttentionConfig attention_config(const OptConfig& c, std::int64_t) {
  return multi_head_config(c.hidden_size, c.num_attention_heads);
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const OptConfig& c, const TensorStore& store) {
  return {store, {"model."}, attention_name(c, 0) + ".q_proj.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const OptConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const AttentionConfig a = attention_config(c, layer);
  const bool bias = c.enable_bias;
  const ProjectionNames names{.q_bias = bias, .k_bias = bias, .v_bias = bias, .o_bias = bias};
  return assemble(a, read_projections(a, attention_name(c, layer), names, weights));
}

}  // namespace bda::inline v0::checkpoint

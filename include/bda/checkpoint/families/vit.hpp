#pragma once

#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"

/// ViT (arXiv 2010.11929): an encoder of image patches. The library reads its attention.
namespace bda::inline v0::checkpoint {

/// `model_type` "vit".
struct VitConfig {
  std::int64_t hidden_size, num_hidden_layers, num_attention_heads;
  bool qkv_bias;
};

namespace detail {

inline VitConfig read_vit(ConfigFields& fields) {
  require_single_stack(fields);
  ignore_body_fields(fields);
  fields.ignore({"encoder_stride", "image_size", "num_channels", "patch_size", "pooler_act",
                 "pooler_output_size"});
  VitConfig c{};
  c.hidden_size = fields.extent("hidden_size");
  c.num_hidden_layers = fields.extent("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.qkv_bias = fields.flag("qkv_bias", true);
  require_multiple(fields, "hidden_size", c.hidden_size, "num_attention_heads",
                   c.num_attention_heads);
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const VitConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const VitConfig&, std::int64_t layer) {
  return "encoder.layer." + std::to_string(layer) + ".attention";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const VitConfig&, std::int64_t) {
  return {.causal = false};
}

[[nodiscard]] inline AttentionConfig attention_config(const VitConfig& c, std::int64_t) {
  return multi_head_config(c.hidden_size, c.num_attention_heads);
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const VitConfig& c, const TensorStore& store) {
  return {store, {"vit."}, attention_name(c, 0) + ".attention.query.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const VitConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const AttentionConfig a = attention_config(c, layer);
  const ProjectionNames names{.q = "attention.query",
                              .k = "attention.key",
                              .v = "attention.value",
                              .o = "output.dense",
                              .q_bias = c.qkv_bias,
                              .k_bias = c.qkv_bias,
                              .v_bias = c.qkv_bias};
  return assemble(a, read_projections(a, attention_name(c, layer), names, weights));
}

}  // namespace bda::inline v0::checkpoint

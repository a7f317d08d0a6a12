#pragma once

#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"

/// T5 (arXiv 1910.10683): encoder and decoder without biases or a softmax scale; a learned bias per
/// head and distance joins the logits of self-attention. The library reads its attention.
namespace bda::inline v0::checkpoint {

/// `model_type` "t5".
struct T5Config {
  std::int64_t d_model, d_kv, num_heads, num_layers;
  std::int64_t num_decoder_layers;  // 0 for an encoder alone
};

namespace detail {

inline T5Config read_t5(ConfigFields& fields) {
  ignore_body_fields(fields);
  // The position bias is added to the logits by whoever runs the model (AttentionMask::bias).
  fields.ignore({"d_ff", "dense_act_fn", "dropout_rate", "feed_forward_proj", "is_gated_act",
                 "layer_norm_epsilon", "n_positions", "output_past",
                 "relative_attention_max_distance", "relative_attention_num_buckets",
                 "scale_decoder_outputs"});
  T5Config c{};
  c.d_model = fields.extent("d_model");
  c.d_kv = fields.extent("d_kv");
  c.num_heads = fields.extent("num_heads");
  c.num_layers = fields.extent("num_layers");
  const Json* architectures = fields.find("architectures");
  const bool encoder_alone =
      !fields.flag("is_encoder_decoder", true) ||
      (architectures != nullptr && *architectures == Json::array({"T5EncoderModel"}));
  const std::int64_t decoder = fields.find_extent("num_decoder_layers").value_or(c.num_layers);
  c.num_decoder_layers = encoder_alone ? 0 : decoder;
  return c;
}

}  // namespace detail

/// The encoder's layers, then each decoder layer's self-attention and cross-attention.
[[nodiscard]] inline std::int64_t attention_count(const T5Config& c) {
  return c.num_layers + 2 * c.num_decoder_layers;
}

[[nodiscard]] inline AttentionPattern attention_pattern(const T5Config& c, std::int64_t i) {
  const bool cross = i >= c.num_layers && (i - c.num_layers) % 2 == 1;
  return {.causal = i >= c.num_layers && !cross, .cross = cross, .position_bias = !cross};
}

[[nodiscard]] inline std::string attention_name(const T5Config& c, std::int64_t i) {
  if (i < c.num_layers) return "encoder.block." + std::to_string(i) + ".layer.0.SelfAttention";
  return "decoder.block." + std::to_string((i - c.num_layers) / 2) +
         (attention_pattern(c, i).cross ? ".layer.1.EncDecAttention" : ".layer.0.SelfAttention");
}

[[nodiscard]] inline AttentionConfig attention_config(const T5Config& c, std::int64_t) {
  AttentionConfig a = multi_head_config(c.d_model, c.num_heads);
  a.qk_dim = a.v_dim = c.d_kv;
  a.scale = 1;
  return a;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const T5Config& c, const TensorStore& store) {
  return {store, {}, attention_name(c, 0) + ".q.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const T5Config& c, std::int64_t i,
                                                 WeightReader<T>& weights) {
  const AttentionConfig a = attention_config(c, i);
  const ProjectionNames names{"q", "k", "v", "o", false, false, false, false};
  return assemble(a, read_projections(a, attention_name(c, i), names, weights));
}

}  // namespace bda::inline v0::checkpoint

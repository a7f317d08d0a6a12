#pragma once

#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"

/// Whisper (arXiv 2212.04356): encoder and decoder with absolute positions; its key projections
/// have no bias. The library reads its attention.
namespace bda::inline v0::checkpoint {

/// `model_type` "whisper".
struct WhisperConfig {
  std::int64_t d_model, encoder_layers, decoder_layers;
  std::int64_t encoder_attention_heads, decoder_attention_heads;
};

namespace detail {

inline WhisperConfig read_whisper(ConfigFields& fields) {
  ignore_body_fields(fields);
  fields.ignore({"apply_spec_augment", "classifier_proj_size", "decoder_ffn_dim",
                 "decoder_layerdrop", "encoder_ffn_dim", "encoder_layerdrop", "forced_decoder_ids",
                 "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob",
                 "mask_time_length", "mask_time_min_masks", "mask_time_prob",
                 "max_source_positions", "max_target_positions", "median_filter_width",
                 "num_mel_bins", "scale_embedding", "use_weighted_layer_sum"});
  WhisperConfig c{};
  c.d_model = fields.extent("d_model");
  c.encoder_layers = fields.extent("encoder_layers");
  c.decoder_layers = fields.extent("decoder_layers");
  c.encoder_attention_heads = fields.extent("encoder_attention_heads");
  c.decoder_attention_heads = fields.extent("decoder_attention_heads");
  require_multiple(fields, "d_model", c.d_model, "encoder_attention_heads",
                   c.encoder_attention_heads);
  require_multiple(fields, "d_model", c.d_model, "decoder_attention_heads",
                   c.decoder_attention_heads);
  fields.require("is_encoder_decoder", true, "encoder and decoder");
  fields.require("num_hidden_layers", c.encoder_layers, "another name of encoder_layers");
  return c;
}

}  // namespace detail

/// The encoder's layers, then each decoder layer's self-attention and cross-attention.
[[nodiscard]] inline std::int64_t attention_count(const WhisperConfig& c) {
  return c.encoder_layers + 2 * c.decoder_layers;
}

[[nodiscard]] inline AttentionPattern attention_pattern(const WhisperConfig& c, std::int64_t i) {
  const bool cross = i >= c.encoder_layers && (i - c.encoder_layers) % 2 == 1;
  return {.causal = i >= c.encoder_layers && !cross, .cross = cross};
}

[[nodiscard]] inline std::string attention_name(const WhisperConfig& c, std::int64_t i) {
  if (i < c.encoder_layers) return "encoder.layers." + std::to_string(i) + ".self_attn";
  return "decoder.layers." + std::to_string((i - c.encoder_layers) / 2) +
         (attention_pattern(c, i).cross ? ".encoder_attn" : ".self_attn");
}

[[nodiscard]] inline AttentionConfig attention_config(const WhisperConfig& c, std::int64_t i) {
  return multi_head_config(
      c.d_model, i < c.encoder_layers ? c.encoder_attention_heads : c.decoder_attention_heads);
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const WhisperConfig& c, const TensorStore& store) {
  return {store, {"model."}, attention_name(c, 0) + ".q_proj.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const WhisperConfig& c, std::int64_t i,
                                                 WeightReader<T>& weights) {
  const AttentionConfig a = attention_config(c, i);
  const ProjectionNames names{.k_bias = false};
  return assemble(a, read_projections(a, attention_name(c, i), names, weights));
}

}  // namespace bda::inline v0::checkpoint

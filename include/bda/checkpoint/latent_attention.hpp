#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/rope_parameters.hpp"
#include "bda/checkpoint/weight_reader.hpp"

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) as DeepSeek's models and those
/// derived from them store it.
namespace bda::inline v0::checkpoint {

/// What the config of a model with latent attention says of it.
struct LatentAttentionConfig {
  std::int64_t hidden_size, num_hidden_layers, num_attention_heads;
  std::int64_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
  std::optional<std::int64_t> q_lora_rank;
  RopeParameters rope;
};

namespace detail {

inline LatentAttentionConfig read_latent_attention(ConfigFields& fields,
                                                   RopeStyle style = RopeStyle::kInterleaved) {
  require_single_stack(fields);
  LatentAttentionConfig c{};
  c.hidden_size = fields.extent("hidden_size");
  c.num_hidden_layers = fields.layers("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.kv_lora_rank = fields.extent("kv_lora_rank");
  c.q_lora_rank = fields.find_extent("q_lora_rank");
  c.qk_nope_head_dim = fields.extent("qk_nope_head_dim");
  c.qk_rope_head_dim = fields.extent("qk_rope_head_dim");
  c.v_head_dim = fields.extent("v_head_dim");
  c.rope = read_rope_parameters(fields, style, c.qk_rope_head_dim, {"default", "yarn"});
  fields.require("num_key_value_heads", c.num_attention_heads, "every head has its own keys");
  fields.require("attention_bias", false, "biases within MLA are not implemented");
  fields.require("use_mla", true, "multi-head latent attention");
  // Derived by transformers from the widths above, which say the same.
  fields.require("head_dim", c.qk_rope_head_dim, "qk_rope_head_dim");
  fields.require("qk_head_dim", c.qk_nope_head_dim + c.qk_rope_head_dim,
                 "qk_nope_head_dim + qk_rope_head_dim");
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const LatentAttentionConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const LatentAttentionConfig&, std::int64_t layer) {
  return "layers." + std::to_string(layer) + ".self_attn";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const LatentAttentionConfig&,
                                                        std::int64_t) {
  return {};
}

[[nodiscard]] inline AttentionConfig attention_config(const LatentAttentionConfig& c,
                                                      std::int64_t) {
  AttentionConfig a;
  a.query_dim = c.q_lora_rank.value_or(c.hidden_size);
  a.kv_dim = c.kv_lora_rank;
  a.out_dim = c.hidden_size;
  a.heads = a.kv_heads = c.num_attention_heads;
  a.qk_dim = c.qk_nope_head_dim;
  a.rope_dim = c.qk_rope_head_dim;
  a.v_dim = c.v_head_dim;
  a.shared_rope_key = true;
  a.rope = c.rope.rope;
  a.scale = c.rope.score_factor / std::sqrt(static_cast<double>(a.head_dim()));
  return a;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const LatentAttentionConfig&,
                                            const TensorStore& store) {
  return {store, {"model."}, "embed_tokens.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const LatentAttentionConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const std::string name = attention_name(c, layer) + ".";
  AttentionWeights<T> a;
  a.config = attention_config(c, layer);
  const std::int64_t q_width = a.config.heads * a.config.head_dim();
  LatentProjection<T>& latent = a.latent.emplace();
  // The norms of the latents have the default epsilon in the published code, not rms_norm_eps.
  latent.norm_epsilon = 1e-6;
  if (c.q_lora_rank) {
    latent.q_a = weights.transposed(name + "q_a_proj.weight", c.hidden_size, *c.q_lora_rank);
    latent.q_norm = weights.vector(name + "q_a_layernorm.weight", *c.q_lora_rank);
    a.q = weights.transposed(name + "q_b_proj.weight", *c.q_lora_rank, q_width);
  } else {
    a.q = weights.transposed(name + "q_proj.weight", c.hidden_size, q_width);
  }

  // The compressed latent and, behind it, the rotary key that all heads share.
  const std::int64_t kv_a_width = c.kv_lora_rank + c.qk_rope_head_dim;
  const Matrix<T> kv_a =
      weights.transposed(name + "kv_a_proj_with_mqa.weight", c.hidden_size, kv_a_width);
  latent.kv_a = detail::take_columns(kv_a, kv_a_width, 0, c.kv_lora_rank);
  latent.kv_norm = weights.vector(name + "kv_a_layernorm.weight", c.kv_lora_rank);
  a.k_rope.weight = detail::take_columns(kv_a, kv_a_width, c.kv_lora_rank, c.qk_rope_head_dim);

  // Each head's columns are [key | value].
  const std::int64_t kv_b_width = c.qk_nope_head_dim + c.v_head_dim;
  const Matrix<T> kv_b = weights.transposed(name + "kv_b_proj.weight", c.kv_lora_rank,
                                            c.num_attention_heads * kv_b_width);
  a.k.weight = detail::take_columns(kv_b, kv_b_width, 0, c.qk_nope_head_dim);
  a.v.weight = detail::take_columns(kv_b, kv_b_width, c.qk_nope_head_dim, c.v_head_dim);
  a.o = weights.transposed(name + "o_proj.weight", c.num_attention_heads * c.v_head_dim,
                           c.hidden_size);
  return a;
}

}  // namespace bda::inline v0::checkpoint

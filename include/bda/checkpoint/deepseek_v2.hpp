#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "bda/checkpoint/config.hpp"
#include "bda/checkpoint/weight_reader.hpp"

/// DeepSeek-V2 (arXiv 2405.04434): multi-head latent attention with decoupled RoPE, dense and
/// mixture-of-experts layers.
namespace bda::inline v0::checkpoint {

[[nodiscard]] inline AttentionConfig attention_config(const DeepseekV2Config& c, std::int64_t) {
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
[[nodiscard]] WeightReader<T> weight_reader(const DeepseekV2Config&, const TensorStore& store) {
  return {store, "model.", "embed_tokens.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const DeepseekV2Config& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const std::string name = "layers." + std::to_string(layer) + ".self_attn.";
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

namespace detail {

template <Storage T>
[[nodiscard]] MoeMlp<T> read_experts(const DeepseekV2Config& c, const std::string& name,
                                     WeightReader<T>& weights) {
  const auto read_mlp = [&](const std::string& part, std::int64_t intermediate) {
    return weights.gated_mlp(name + part, c.hidden_size, intermediate, false, c.hidden_act);
  };
  MoeMlp<T> moe;
  moe.router = weights.transposed(name + ".gate.weight", c.hidden_size, c.n_routed_experts);
  moe.routing = c.routing;
  for (std::int64_t i = 0; i < c.n_routed_experts; ++i)
    moe.experts.push_back(read_mlp(".experts." + std::to_string(i), c.moe_intermediate_size));
  if (c.n_shared_experts > 0)
    moe.shared = read_mlp(".shared_experts", c.n_shared_experts * c.moe_intermediate_size);
  return moe;
}

}  // namespace detail

template <Storage T>
[[nodiscard]] TransformerWeights<T> read_transformer(const DeepseekV2Config& c,
                                                     WeightReader<T>& weights) {
  TransformerWeights<T> model;
  model.model_type = "deepseek_v2";
  model.max_positions = c.max_position_embeddings;
  model.embedding = weights.matrix("embed_tokens.weight", c.vocab_size, c.hidden_size);
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string name = "layers." + std::to_string(i);
    TransformerLayer<T>& layer = model.layers.emplace_back();
    layer.attention_norm =
        weights.rms_norm(name + ".input_layernorm", c.hidden_size, c.rms_norm_eps);
    layer.attention = read_attention(c, i, weights);
    layer.mlp_norm =
        weights.rms_norm(name + ".post_attention_layernorm", c.hidden_size, c.rms_norm_eps);
    if (c.is_moe[static_cast<std::size_t>(i)])
      layer.mlp = detail::read_experts(c, name + ".mlp", weights);
    else
      layer.mlp =
          weights.gated_mlp(name + ".mlp", c.hidden_size, c.intermediate_size, false, c.hidden_act);
  }
  model.final_norm = weights.rms_norm("norm", c.hidden_size, c.rms_norm_eps);
  model.lm_head =
      weights.lm_head(c.tie_word_embeddings, "embed_tokens.weight", c.vocab_size, c.hidden_size);
  weights.refuse_unread({".rotary_emb.inv_freq"});
  return model;
}

}  // namespace bda::inline v0::checkpoint

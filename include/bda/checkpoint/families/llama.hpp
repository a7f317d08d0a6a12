#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/bd_tensors.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"
#include "bda/checkpoint/rope_parameters.hpp"
#include "bda/checkpoint/weight_reader.hpp"

/// The Llama family: grouped-query attention with rotary embedding over the whole head.
namespace bda::inline v0::checkpoint {

/// `model_type` "llama": Llama 1 to 3, TinyLlama and others of that architecture.
struct LlamaConfig {
  std::int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
  std::int64_t num_attention_heads, num_key_value_heads, head_dim, max_position_embeddings;
  Activation hidden_act;
  double rms_norm_eps;
  bool attention_bias, mlp_bias, tie_word_embeddings;
  RopeConfig rope;
};

namespace detail {

inline LlamaConfig read_llama(ConfigFields& fields) {
  require_single_stack(fields);
  LlamaConfig c{};
  c.vocab_size = fields.extent("vocab_size");
  c.hidden_size = fields.extent("hidden_size");
  c.intermediate_size = fields.extent("intermediate_size");
  c.num_hidden_layers = fields.extent("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.num_key_value_heads = fields.find_extent("num_key_value_heads").value_or(c.num_attention_heads);
  if (c.num_attention_heads % c.num_key_value_heads != 0)
    fields.refuse("num_key_value_heads",
                  "a divisor of num_attention_heads = " + std::to_string(c.num_attention_heads));
  const std::optional<std::int64_t> head_dim = fields.find_extent("head_dim");
  if (!head_dim && c.hidden_size % c.num_attention_heads != 0)
    fields.refuse("hidden_size",
                  "a multiple of num_attention_heads = " + std::to_string(c.num_attention_heads) +
                      ", where head_dim is not given");
  c.head_dim = head_dim.value_or(c.hidden_size / c.num_attention_heads);
  c.max_position_embeddings = fields.extent("max_position_embeddings");
  c.hidden_act = read_activation(fields, "hidden_act", "silu");
  c.rms_norm_eps = fields.positive("rms_norm_eps", 1e-6);
  c.attention_bias = fields.flag("attention_bias", false);
  c.mlp_bias = fields.flag("mlp_bias", false);
  c.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
  c.rope = read_rope_parameters(fields, RopeStyle::kHalfSplit, c.head_dim,
                                {"default", "linear", "llama3", "yarn"})
               .rope;
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const LlamaConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const LlamaConfig&, std::int64_t layer) {
  return "layers." + std::to_string(layer) + ".self_attn";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const LlamaConfig&, std::int64_t) {
  return {};
}

[[nodiscard]] inline AttentionConfig attention_config(const LlamaConfig& c, std::int64_t) {
  AttentionConfig a;
  a.query_dim = a.kv_dim = a.out_dim = c.hidden_size;
  a.heads = c.num_attention_heads;
  a.kv_heads = c.num_key_value_heads;
  a.rope_dim = a.v_dim = c.head_dim;
  a.rope = c.rope;
  a.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
  return a;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const LlamaConfig&, const TensorStore& store) {
  return {store, {"model."}, "embed_tokens.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const LlamaConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const bool bias = c.attention_bias;
  const AttentionConfig a = attention_config(c, layer);
  return assemble(
      a, read_projections(
             a, attention_name(c, layer),
             {.o = "o_proj", .q_bias = bias, .k_bias = bias, .v_bias = bias, .o_bias = bias},
             weights));
}

template <Storage T>
[[nodiscard]] TransformerWeights<T> read_transformer(const LlamaConfig& c,
                                                     WeightReader<T>& weights) {
  TransformerWeights<T> model;
  model.model_type = "llama";
  model.max_positions = c.max_position_embeddings;
  model.embedding = weights.matrix("embed_tokens.weight", c.vocab_size, c.hidden_size);
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string name = "layers." + std::to_string(i);
    model.layers.push_back(
        {weights.rms_norm(name + ".input_layernorm", c.hidden_size, c.rms_norm_eps),
         read_stored_attention(c, i, weights),
         weights.rms_norm(name + ".post_attention_layernorm", c.hidden_size, c.rms_norm_eps),
         weights.gated_mlp(name + ".mlp", c.hidden_size, c.intermediate_size, c.mlp_bias,
                           c.hidden_act)});
  }
  model.final_norm = weights.rms_norm("norm", c.hidden_size, c.rms_norm_eps);
  model.lm_head =
      weights.lm_head(c.tie_word_embeddings, "embed_tokens.weight", c.vocab_size, c.hidden_size);
  weights.refuse_unread({".rotary_emb.inv_freq"});
  return model;
}

}  // namespace bda::inline v0::checkpoint

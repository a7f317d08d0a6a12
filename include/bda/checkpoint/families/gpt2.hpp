#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/bd_tensors.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"
#include "bda/checkpoint/weight_reader.hpp"

/// GPT-2: multi-head attention with biases and learned positions. Its linear layers ("Conv1D") are
/// stored [in, out], which is the library's own layout.
namespace bda::inline v0::checkpoint {

/// `model_type` "gpt2"; n_inner is 4 n_embd where the file leaves it out.
struct Gpt2Config {
  std::int64_t vocab_size, n_embd, n_inner, n_layer, n_head, n_positions;
  Activation activation_function;
  double layer_norm_epsilon;
  bool scale_attn_weights, scale_attn_by_inverse_layer_idx, tie_word_embeddings;
};

namespace detail {

inline Gpt2Config read_gpt2(ConfigFields& fields) {
  require_single_stack(fields);
  Gpt2Config c{};
  c.vocab_size = fields.extent("vocab_size");
  c.n_embd = fields.extent("n_embd");
  c.n_layer = fields.extent("n_layer");
  c.n_head = fields.extent("n_head");
  if (c.n_embd % c.n_head != 0)
    fields.refuse("n_embd", "a multiple of n_head = " + std::to_string(c.n_head));
  c.n_inner = fields.find_extent("n_inner").value_or(4 * c.n_embd);
  c.n_positions = fields.extent("n_positions");
  c.activation_function = read_activation(fields, "activation_function", "gelu_new");
  c.layer_norm_epsilon = fields.positive("layer_norm_epsilon", 1e-5);
  c.scale_attn_weights = fields.flag("scale_attn_weights", true);
  c.scale_attn_by_inverse_layer_idx = fields.flag("scale_attn_by_inverse_layer_idx", false);
  c.tie_word_embeddings = fields.flag("tie_word_embeddings", true);
  fields.require("n_ctx", c.n_positions, "as n_positions");
  // reorder_and_upcast_attn only says where a 16-bit computation rounds.
  fields.ignore({"reorder_and_upcast_attn", "summary_activation", "summary_first_dropout",
                 "summary_proj_to_labels", "summary_type", "summary_use_proj"});
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const Gpt2Config& c) { return c.n_layer; }

[[nodiscard]] inline std::string attention_name(const Gpt2Config&, std::int64_t layer) {
  return "h." + std::to_string(layer) + ".attn";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const Gpt2Config&, std::int64_t) {
  return {};
}

[[nodiscard]] inline AttentionConfig attention_config(const Gpt2Config& c, std::int64_t layer) {
  AttentionConfig a;
  a.query_dim = a.kv_dim = a.out_dim = c.n_embd;
  a.heads = a.kv_heads = c.n_head;
  a.qk_dim = a.v_dim = c.n_embd / c.n_head;
  a.scale = c.scale_attn_weights ? 1 / std::sqrt(static_cast<double>(a.qk_dim)) : 1;
  if (c.scale_attn_by_inverse_layer_idx) a.scale /= static_cast<double>(layer + 1);
  return a;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const Gpt2Config&, const TensorStore& store) {
  return {store, {"transformer."}, "wte.weight"};
}

namespace detail {

template <Storage T>
[[nodiscard]] Linear<T> read_conv1d(WeightReader<T>& weights, const std::string& name,
                                    std::int64_t in, std::int64_t out) {
  return {weights.matrix(name + ".weight", in, out), weights.vector(name + ".bias", out)};
}

}  // namespace detail

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const Gpt2Config& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const std::string name = attention_name(c, layer);
  const std::int64_t hidden = c.n_embd;
  const Linear<T> qkv = detail::read_conv1d(weights, name + ".c_attn", hidden, 3 * hidden);
  // c_attn's columns are [q | k | v], each [heads, head width].
  const auto part = [&](std::int64_t i) {
    return take_columns(qkv, 3 * hidden, i * hidden, hidden);
  };
  return assemble<T>(
      attention_config(c, layer),
      {part(0), part(1), part(2), detail::read_conv1d(weights, name + ".c_proj", hidden, hidden)});
}

template <Storage T>
[[nodiscard]] TransformerWeights<T> read_transformer(const Gpt2Config& c,
                                                     WeightReader<T>& weights) {
  TransformerWeights<T> model;
  model.model_type = "gpt2";
  model.max_positions = c.n_positions;
  model.embedding = weights.matrix("wte.weight", c.vocab_size, c.n_embd);
  model.positions = weights.matrix("wpe.weight", c.n_positions, c.n_embd);
  for (std::int64_t i = 0; i < c.n_layer; ++i) {
    const std::string name = "h." + std::to_string(i);
    model.layers.push_back(
        {weights.layer_norm(name + ".ln_1", c.n_embd, c.layer_norm_epsilon),
         read_stored_attention(c, i, weights),
         weights.layer_norm(name + ".ln_2", c.n_embd, c.layer_norm_epsilon),
         PlainMlp<T>{detail::read_conv1d(weights, name + ".mlp.c_fc", c.n_embd, c.n_inner),
                     detail::read_conv1d(weights, name + ".mlp.c_proj", c.n_inner, c.n_embd),
                     c.activation_function}});
  }
  model.final_norm = weights.layer_norm("ln_f", c.n_embd, c.layer_norm_epsilon);
  model.lm_head = weights.lm_head(c.tie_word_embeddings, "wte.weight", c.vocab_size, c.n_embd);
  // Older files also store the causal mask.
  weights.refuse_unread({".attn.bias", ".attn.masked_bias"});
  return model;
}

}  // namespace bda::inline v0::checkpoint

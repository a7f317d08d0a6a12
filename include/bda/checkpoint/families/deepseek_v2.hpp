#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bda/checkpoint/bd_tensors.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/latent_attention.hpp"
#include "bda/checkpoint/weight_reader.hpp"

/// DeepSeek-V2 (arXiv 2405.04434): multi-head latent attention with decoupled RoPE, dense and
/// mixture-of-experts layers.
namespace bda::inline v0::checkpoint {

/// `model_type` "deepseek_v2" (arXiv 2405.04434).
struct DeepseekV2Config : LatentAttentionConfig {
  std::int64_t vocab_size, intermediate_size, max_position_embeddings;
  std::vector<bool> is_moe;  // [num_hidden_layers], else a dense layer
  std::int64_t n_routed_experts, n_shared_experts, moe_intermediate_size;  // 0 for none
  ExpertRouting routing;
  Activation hidden_act;
  double rms_norm_eps;
  bool tie_word_embeddings;
};

namespace detail {

/// Which layers have experts: `mlp_layer_types` in files of transformers 5, else the rule of
/// DeepSeek's code, every `moe_layer_freq`-th layer from `first_k_dense_replace` on. Where a file
/// has both, they must agree.
inline std::vector<bool> read_moe_layers(ConfigFields& fields, std::int64_t layers,
                                         bool has_experts) {
  const Json* first_dense = fields.find("first_k_dense_replace");
  if (first_dense != nullptr && (!first_dense->is_number_integer() || *first_dense < 0))
    fields.refuse("first_k_dense_replace", "an integer of at least 0");
  const std::int64_t first = first_dense == nullptr ? 0 : first_dense->get<std::int64_t>();
  const std::int64_t every = fields.find_extent("moe_layer_freq").value_or(1);
  const Json* types = fields.find("mlp_layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != static_cast<std::size_t>(layers)))
    fields.refuse("mlp_layer_types", "one entry for each of " + std::to_string(layers) + " layers");

  std::vector<bool> is_moe;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    bool moe = has_experts && layer >= first && layer % every == 0;
    if (types != nullptr) {
      const Json& type = (*types)[static_cast<std::size_t>(layer)];
      if (type != "sparse" && type != "dense")
        fields.refuse("mlp_layer_types", "\"sparse\" or \"dense\" for each layer");
      if (first_dense != nullptr && moe != (type == "sparse"))
        fields.refuse("mlp_layer_types", "the layers that first_k_dense_replace says");
      moe = type == "sparse";
    }
    is_moe.push_back(moe);
  }
  return is_moe;
}

inline void read_experts(ConfigFields& fields, DeepseekV2Config& c) {
  const std::optional<std::int64_t> experts = fields.find_extent("n_routed_experts");
  c.n_routed_experts = experts.value_or(0);
  c.is_moe = read_moe_layers(fields, c.num_hidden_layers, experts.has_value());
  const Json* shared = fields.find("n_shared_experts");
  if (shared != nullptr && *shared != 0)
    c.n_shared_experts = *fields.find_extent("n_shared_experts");

  const std::string method = fields.find_text("topk_method").value_or("greedy");
  if (method != "greedy" && method != "group_limited_greedy")
    fields.refuse("topk_method", "greedy or group_limited_greedy");
  fields.require("scoring_func", "softmax", "as DeepSeek-V2 was published");
  c.routing.normalize = fields.flag("norm_topk_prob", false);
  c.routing.scale = fields.find_number("routed_scaling_factor").value_or(1.0);
  c.moe_intermediate_size = fields.find_extent("moe_intermediate_size").value_or(0);
  const std::optional<std::int64_t> chosen = fields.find_extent("num_experts_per_tok");
  const std::optional<std::int64_t> groups = fields.find_extent("n_group");
  const std::optional<std::int64_t> kept = fields.find_extent("topk_group");
  if (std::find(c.is_moe.begin(), c.is_moe.end(), true) == c.is_moe.end()) return;

  if (!experts) fields.refuse("n_routed_experts", "an integer, with sparse layers");
  if (c.moe_intermediate_size == 0) fields.refuse("moe_intermediate_size", "an integer");
  if (!chosen) fields.refuse("num_experts_per_tok", "an integer");
  c.routing.experts_per_token = *chosen;
  if (method == "group_limited_greedy") {
    c.routing.groups = fields.extent("n_group");
    c.routing.groups_per_token = fields.extent("topk_group");
    if (c.n_routed_experts % *groups != 0)
      fields.refuse("n_group", "a divisor of n_routed_experts = " + std::to_string(*experts));
    if (*kept > *groups)
      fields.refuse("topk_group", "at most n_group = " + std::to_string(*groups));
  }
  const std::int64_t eligible = *experts / c.routing.groups * c.routing.groups_per_token;
  if (*chosen > eligible)
    fields.refuse("num_experts_per_tok",
                  "at most " + std::to_string(eligible) + " (the experts that can be chosen)");
}

inline DeepseekV2Config read_deepseek_v2(ConfigFields& fields) {
  DeepseekV2Config c{};
  static_cast<LatentAttentionConfig&>(c) = read_latent_attention(fields);
  c.vocab_size = fields.extent("vocab_size");
  c.intermediate_size = fields.extent("intermediate_size");
  c.max_position_embeddings = fields.extent("max_position_embeddings");
  c.hidden_act = read_activation(fields, "hidden_act", "silu");
  c.rms_norm_eps = fields.positive("rms_norm_eps", 1e-6);
  c.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
  read_experts(fields, c);

  fields.require("mlp_bias", false, "as DeepSeek-V2 was published");
  // Losses in training, and how experts are laid out over machines.
  fields.ignore(
      {"aux_loss_alpha", "seq_aux", "output_router_logits", "router_aux_loss_coef", "ep_size"});
  return c;
}

}  // namespace detail

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
    layer.attention = read_stored_attention(c, i, weights);
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

#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bda/checkpoint/config_fields.hpp"
#include "bda/checkpoint/mapped_file.hpp"
#include "bda/checkpoint/rope_parameters.hpp"
#include "bda/checkpoint/transformer.hpp"

/// config.json as typed values, one struct per model family; members have the field's own name.
///
/// Nothing that bears on the result is ignored: a field or a value that the library does not
/// implement is refused by name, and so is every field it has never heard of.
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

/// `model_type` "gpt2"; n_inner is 4 n_embd where the file leaves it out.
struct Gpt2Config {
  std::int64_t vocab_size, n_embd, n_inner, n_layer, n_head, n_positions;
  Activation activation_function;
  double layer_norm_epsilon;
  bool scale_attn_weights, scale_attn_by_inverse_layer_idx, tie_word_embeddings;
};

/// `model_type` "deepseek_v2" (arXiv 2405.04434).
struct DeepseekV2Config {
  std::int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
  std::int64_t num_attention_heads, max_position_embeddings;
  std::int64_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
  std::optional<std::int64_t> q_lora_rank;
  std::vector<bool> is_moe;  // [num_hidden_layers], else a dense layer
  std::int64_t n_routed_experts, n_shared_experts, moe_intermediate_size;  // 0 for none
  ExpertRouting routing;
  Activation hidden_act;
  double rms_norm_eps;
  bool tie_word_embeddings;
  RopeParameters rope;
};

using ModelConfig = std::variant<DeepseekV2Config, Gpt2Config, LlamaConfig>;

namespace detail {

inline Activation read_activation(ConfigFields& fields, std::string_view key,
                                  std::string_view fallback) {
  const std::string name = fields.find_text(key).value_or(std::string(fallback));
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  fields.refuse(key, "silu, gelu, gelu_new or gelu_pytorch_tanh");
}

/// Fields of every model type that leave the logits as they are: provenance, training (dropout,
/// initialisation, auxiliary losses), tokens and sampling, what a call returns, how it is computed.
inline void ignore_common_fields(ConfigFields& fields) {
  fields.ignore({"_name_or_path", "_commit_hash", "architectures", "auto_map", "dtype",
                 "finetuning_task", "is_decoder", "loss_type", "model_type", "task_specific_params",
                 "tokenizer_class", "torch_dtype", "transformers_version", "unsloth_fixed",
                 "unsloth_version"});
  fields.ignore({"attention_dropout", "attn_pdrop", "classifier_dropout", "embd_pdrop",
                 "gradient_checkpointing", "initializer_range", "mlp_dropout", "resid_pdrop"});
  fields.ignore({"bos_token_id",
                 "eos_token_id",
                 "pad_token_id",
                 "sep_token_id",
                 "prefix",
                 "decoder_start_token_id",
                 "do_sample",
                 "early_stopping",
                 "max_length",
                 "min_length",
                 "num_beams",
                 "repetition_penalty",
                 "temperature",
                 "top_k",
                 "top_p",
                 "max_new_tokens",
                 "max_sequence_length",
                 "length_penalty",
                 "bad_words_ids",
                 "begin_suppress_tokens",
                 "suppress_tokens",
                 "forced_bos_token_id",
                 "forced_eos_token_id",
                 "diversity_penalty",
                 "num_beam_groups",
                 "encoder_no_repeat_ngram_size",
                 "no_repeat_ngram_size",
                 "num_return_sequences",
                 "exponential_decay_length_penalty",
                 "remove_invalid_values",
                 "typical_p"});
  fields.ignore({"id2label", "label2id", "num_labels", "_num_labels", "problem_type",
                 "output_attentions", "output_hidden_states", "output_scores", "return_dict",
                 "return_dict_in_generate", "use_return_dict", "use_cache"});
  fields.ignore({"_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
                 "chunk_size_feed_forward", "pretraining_tp", "tf_legacy_loss", "torchscript",
                 "use_bfloat16"});
  fields.require("add_cross_attention", false, "decoder-only models");
  fields.require("is_encoder_decoder", false, "decoder-only models");
  fields.require("tie_encoder_decoder", false, "decoder-only models");
  fields.require("pruned_heads", Json::object(), "all heads are there");
}

inline LlamaConfig read_llama(ConfigFields& fields) {
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

inline Gpt2Config read_gpt2(ConfigFields& fields) {
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
  c.vocab_size = fields.extent("vocab_size");
  c.hidden_size = fields.extent("hidden_size");
  c.intermediate_size = fields.extent("intermediate_size");
  c.num_hidden_layers = fields.extent("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.max_position_embeddings = fields.extent("max_position_embeddings");
  c.kv_lora_rank = fields.extent("kv_lora_rank");
  c.q_lora_rank = fields.find_extent("q_lora_rank");
  c.qk_nope_head_dim = fields.extent("qk_nope_head_dim");
  c.qk_rope_head_dim = fields.extent("qk_rope_head_dim");
  c.v_head_dim = fields.extent("v_head_dim");
  c.hidden_act = read_activation(fields, "hidden_act", "silu");
  c.rms_norm_eps = fields.positive("rms_norm_eps", 1e-6);
  c.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
  c.rope = read_rope_parameters(fields, RopeStyle::kInterleaved, c.qk_rope_head_dim,
                                {"default", "yarn"});
  read_experts(fields, c);

  fields.require("num_key_value_heads", c.num_attention_heads, "every head has its own keys");
  fields.require("attention_bias", false, "biases within MLA are not implemented");
  fields.require("mlp_bias", false, "as DeepSeek-V2 was published");
  fields.require("use_mla", true, "multi-head latent attention");
  // Derived by transformers from the widths above, which say the same.
  fields.require("head_dim", c.qk_rope_head_dim, "qk_rope_head_dim");
  fields.require("qk_head_dim", c.qk_nope_head_dim + c.qk_rope_head_dim,
                 "qk_nope_head_dim + qk_rope_head_dim");
  // Losses in training, and how experts are laid out over machines.
  fields.ignore(
      {"aux_loss_alpha", "seq_aux", "output_router_logits", "router_aux_loss_coef", "ep_size"});
  return c;
}

}  // namespace detail

/// Reads a parsed config.json; `label` names the file in errors. Throws `Error` on a model type, a
/// field or a value that is not implemented.
[[nodiscard]] inline ModelConfig parse_config(const Json& json, const std::string& label) {
  ConfigFields fields(json, label);
  // Said first: no other field of such a checkpoint helps its reader.
  if (fields.find("quantization_config") != nullptr)
    fields.refuse("quantization_config", "no quantization");
  detail::ignore_common_fields(fields);
  const std::string type = fields.find_text("model_type").value_or("");
  std::optional<ModelConfig> config;
  if (type == "deepseek_v2")
    config = detail::read_deepseek_v2(fields);
  else if (type == "gpt2")
    config = detail::read_gpt2(fields);
  else if (type == "llama")
    config = detail::read_llama(fields);
  else
    fields.refuse("model_type", "deepseek_v2, gpt2 or llama");
  fields.refuse_unknown();
  return *config;
}

/// Reads the file `path`.
[[nodiscard]] inline ModelConfig read_config(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_config(
      parse_json_object({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()},
                        path.string()),
      path.string());
}

}  // namespace bda::inline v0::checkpoint

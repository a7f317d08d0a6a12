#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "bda/checkpoint/config_fields.hpp"
#include "bda/checkpoint/transformer.hpp"

/// Fields of config.json that several model families share.
namespace bda::inline v0::checkpoint::detail {

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
  fields.require("pruned_heads", Json::object(), "all heads are there");
}

/// For models that are a single stack of layers without cross-attention.
inline void require_single_stack(ConfigFields& fields) {
  fields.require("add_cross_attention", false, "layers attend to their own sequence alone");
  fields.require("is_encoder_decoder", false, "a single stack of layers");
  fields.require("tie_encoder_decoder", false, "a single stack of layers");
}

/// Where the library reads the attention alone: fields that bear on the rest of the model.
inline void ignore_body_fields(ConfigFields& fields) {
  fields.ignore({"activation_dropout", "activation_function", "dropout", "hidden_act",
                 "hidden_activation", "hidden_dropout_prob", "init_std", "initializer_factor",
                 "attention_probs_dropout_prob", "intermediate_size", "layer_norm_eps", "layerdrop",
                 "max_position_embeddings", "mlp_bias", "rms_norm_eps", "tie_word_embeddings",
                 "vocab_size"});
}

/// `hidden` split evenly over `heads`, each by its key.
inline void require_multiple(const ConfigFields& fields, std::string_view hidden_key,
                             std::int64_t hidden, std::string_view heads_key, std::int64_t heads) {
  if (hidden % heads != 0)
    fields.refuse(hidden_key,
                  "a multiple of " + std::string(heads_key) + " = " + std::to_string(heads));
}

}  // namespace bda::inline v0::checkpoint::detail

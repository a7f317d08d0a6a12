#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"
#include "bda/checkpoint/rope_parameters.hpp"

/// Mistral, Qwen 2 and 3, Gemma 1 to 3: grouped-query attention with rotary embedding over the
/// whole head, as Llama's, with their own biases, norms, scales and windows. The library reads
/// their attention. With every channel rotated the VO side alone is exact.
namespace bda::inline v0::checkpoint {

/// What becomes of each head's query and key before the rotation.
enum class HeadNorm {
  kNone,
  kRms,            // an RMS norm (Qwen 3)
  kRmsOffsetByOne  // the same with 1 + weight as gain (Gemma 3)
};

/// `model_type` "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text" or "gemma3" (of which
/// the language model is read and the vision tower left alone).
struct RotaryDecoderConfig {
  std::int64_t hidden_size, num_hidden_layers;
  std::int64_t num_attention_heads, num_key_value_heads, head_dim;
  bool qkv_bias, o_bias;
  HeadNorm head_norm;
  double head_norm_epsilon;
  double scale, logit_softcap;
  std::vector<std::int64_t> windows;  // [num_hidden_layers], 0 for none
  RopeConfig rope, sliding_rope;      // of layers without and with a window
  std::vector<std::string> body_prefixes;
};

namespace detail {

/// Whether each layer has a sliding window: by `layer_types` where it is given, else by the rule
/// of its model type.
template <class Rule>
std::vector<std::int64_t> read_windows(ConfigFields& fields, std::int64_t layers,
                                       std::int64_t window, const Rule& is_sliding) {
  std::vector<std::int64_t> windows(static_cast<std::size_t>(layers));
  const Json* types = fields.find("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != windows.size()))
    fields.refuse("layer_types", "one entry for each of " + std::to_string(layers) + " layers");
  for (std::size_t i = 0; i < windows.size(); ++i) {
    bool sliding = window > 0 && is_sliding(static_cast<std::int64_t>(i));
    if (types != nullptr) {
      const Json& type = (*types)[i];
      if (type != "full_attention" && type != "sliding_attention")
        fields.refuse("layer_types", "\"full_attention\" or \"sliding_attention\" for each layer");
      sliding = type == "sliding_attention";
      if (sliding && window == 0) fields.refuse("sliding_window", "a width, with sliding layers");
    }
    windows[i] = sliding ? window : 0;
  }
  return windows;
}

/// A width that is 0 where the file says null, and has a default where it says nothing.
inline std::int64_t read_window(ConfigFields& fields, std::int64_t fallback) {
  if (!fields.is_given("sliding_window")) return fallback;
  return fields.find_extent("sliding_window").value_or(0);
}

/// The shape, which all the model types spell alike. 0 as a default: there is none.
inline RotaryDecoderConfig read_rotary_shape(ConfigFields& fields, std::int64_t default_heads = 0,
                                             std::int64_t default_kv_heads = 0,
                                             std::int64_t default_head_dim = 0) {
  require_single_stack(fields);
  ignore_body_fields(fields);
  const auto extent = [&](std::string_view key, std::int64_t fallback) {
    return fallback > 0 ? fields.find_extent(key).value_or(fallback) : fields.extent(key);
  };
  RotaryDecoderConfig c{};
  c.hidden_size = fields.extent("hidden_size");
  c.num_hidden_layers = fields.layers("num_hidden_layers");
  c.num_attention_heads = extent("num_attention_heads", default_heads);
  c.num_key_value_heads =
      fields.find_extent("num_key_value_heads")
          .value_or(default_kv_heads > 0 ? default_kv_heads : c.num_attention_heads);
  if (c.num_attention_heads % c.num_key_value_heads != 0)
    fields.refuse("num_key_value_heads",
                  "a divisor of num_attention_heads = " + std::to_string(c.num_attention_heads));
  std::optional<std::int64_t> head_dim = fields.find_extent("head_dim");
  if (!head_dim && default_head_dim > 0) head_dim = default_head_dim;
  if (!head_dim)
    require_multiple(fields, "hidden_size", c.hidden_size, "num_attention_heads",
                     c.num_attention_heads);
  c.head_dim = head_dim.value_or(c.hidden_size / c.num_attention_heads);
  c.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
  c.windows.assign(static_cast<std::size_t>(c.num_hidden_layers), 0);
  c.body_prefixes = {"model."};
  return c;
}

inline void read_rope(ConfigFields& fields, RotaryDecoderConfig& c) {
  c.rope = read_rope_parameters(fields, RopeStyle::kHalfSplit, c.head_dim,
                                {"default", "linear", "llama3", "yarn"})
               .rope;
  c.sliding_rope = c.rope;
}

inline RotaryDecoderConfig read_mistral(ConfigFields& fields) {
  RotaryDecoderConfig c = read_rotary_shape(fields);
  read_rope(fields, c);
  c.windows.assign(c.windows.size(), read_window(fields, 4096));
  return c;
}

/// What Qwen 2 and 3 share: a window, where it is switched on, from layer `max_window_layers` on.
inline RotaryDecoderConfig read_qwen(ConfigFields& fields) {
  RotaryDecoderConfig c = read_rotary_shape(fields);
  read_rope(fields, c);
  fields.require("use_mrope", false, "positions of one dimension");
  const std::int64_t window =
      fields.flag("use_sliding_window", false) ? read_window(fields, 4096) : 0;
  const Json* first = fields.find("max_window_layers");
  if (first != nullptr && (!first->is_number_integer() || *first < 0))
    fields.refuse("max_window_layers", "an integer of at least 0");
  const std::int64_t full_layers = first == nullptr ? 28 : first->get<std::int64_t>();
  fields.ignore({"sliding_window"});
  c.windows = read_windows(fields, c.num_hidden_layers, window,
                           [&](std::int64_t layer) { return layer >= full_layers; });
  return c;
}

inline RotaryDecoderConfig read_qwen2(ConfigFields& fields) {
  RotaryDecoderConfig c = read_qwen(fields);
  c.qkv_bias = true;
  return c;
}

inline RotaryDecoderConfig read_qwen3(ConfigFields& fields) {
  RotaryDecoderConfig c = read_qwen(fields);
  c.qkv_bias = c.o_bias = fields.flag("attention_bias", false);
  c.head_norm = HeadNorm::kRms;
  c.head_norm_epsilon = fields.positive("rms_norm_eps", 1e-6);
  return c;
}

/// What Gemma 1 to 3 share.
inline RotaryDecoderConfig read_gemma_shape(ConfigFields& fields, std::int64_t heads = 0,
                                            std::int64_t kv_heads = 0) {
  RotaryDecoderConfig c = read_rotary_shape(fields, heads, kv_heads, 256);
  c.qkv_bias = c.o_bias = fields.flag("attention_bias", false);
  fields.require("use_bidirectional_attention", false, "a causal mask");
  fields.ignore({"cache_implementation"});
  return c;
}

inline RotaryDecoderConfig read_gemma(ConfigFields& fields) {
  RotaryDecoderConfig c = read_gemma_shape(fields);
  read_rope(fields, c);
  return c;
}

/// The scale and the cap of Gemma 2 and 3.
inline void read_gemma_scores(ConfigFields& fields, double default_cap, RotaryDecoderConfig& c) {
  c.scale = 1 / std::sqrt(fields.positive("query_pre_attn_scalar", 256.0));
  const bool has_default = !fields.is_given("attn_logit_softcapping");
  const bool has_cap = fields.find("attn_logit_softcapping") != nullptr;
  c.logit_softcap =
      has_cap ? fields.positive("attn_logit_softcapping") : (has_default ? default_cap : 0);
  fields.ignore({"final_logit_softcapping"});  // of the model's logits
}

inline RotaryDecoderConfig read_gemma2(ConfigFields& fields) {
  RotaryDecoderConfig c = read_gemma_shape(fields);
  read_rope(fields, c);
  read_gemma_scores(fields, 50, c);
  const std::int64_t window = read_window(fields, 4096);
  fields.require("sliding_window_size", window, "as sliding_window");
  c.windows = read_windows(fields, c.num_hidden_layers, window,
                           [](std::int64_t layer) { return layer % 2 == 0; });
  return c;
}

/// Gemma 3 rotates its sliding layers by other frequencies than the rest.
inline void read_gemma3_rope(ConfigFields& fields, RotaryDecoderConfig& c) {
  constexpr double kTheta = 1e6, kSlidingTheta = 1e4;
  const Json* parameters = fields.find("rope_parameters");
  if (parameters == nullptr) {
    c.rope =
        read_rope_parameters(fields, RopeStyle::kHalfSplit, c.head_dim,
                             {"default", "linear", "llama3", "yarn"}, {.default_theta = kTheta})
            .rope;
    c.sliding_rope.style = RopeStyle::kHalfSplit;
    c.sliding_rope.frequencies =
        rope_frequencies(c.head_dim, fields.positive("rope_local_base_freq", kSlidingTheta));
    return;
  }
  fields.require("rope_scaling", nullptr, "rope_parameters replaces it");
  if (!parameters->is_object()) fields.refuse("rope_parameters", "an object");
  const std::string label = fields.label() + ": rope_parameters";
  ConfigFields by_type(*parameters, label);
  const auto read = [&](const std::string& key, double default_theta) {
    const Json* given = by_type.find(key);
    if (given != nullptr && !given->is_object()) by_type.refuse(key, "an object");
    ConfigFields rule(given != nullptr ? *given : Json::object(), label + ": " + key);
    const double theta = rule.positive("rope_theta", default_theta);
    if (!(theta > 1)) rule.refuse("rope_theta", "more than 1");
    return read_rope_rule(rule, theta, RopeStyle::kHalfSplit, c.head_dim,
                          {"default", "linear", "llama3", "yarn"})
        .rope;
  };
  c.rope = read("full_attention", kTheta);
  c.sliding_rope = read("sliding_attention", kSlidingTheta);
  by_type.refuse_unknown();
}

inline RotaryDecoderConfig read_gemma3_text(ConfigFields& fields) {
  RotaryDecoderConfig c = read_gemma_shape(fields, 8, 4);
  read_gemma3_rope(fields, c);
  read_gemma_scores(fields, 0, c);
  c.head_norm = HeadNorm::kRmsOffsetByOne;
  c.head_norm_epsilon = fields.positive("rms_norm_eps", 1e-6);
  const std::int64_t every = fields.find_extent("sliding_window_pattern").value_or(6);
  fields.require("_sliding_window_pattern", every, "as sliding_window_pattern");
  c.windows = read_windows(fields, c.num_hidden_layers, read_window(fields, 4096),
                           [&](std::int64_t layer) { return (layer + 1) % every != 0; });
  return c;
}

inline RotaryDecoderConfig read_gemma3(ConfigFields& fields) {
  const Json* text = fields.find("text_config");
  if (text == nullptr || !text->is_object()) fields.refuse("text_config", "an object");
  // The vision tower and what joins it to the language model.
  fields.ignore({"boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image",
                 "tie_word_embeddings", "vision_config"});
  ConfigFields text_fields(*text, fields.label() + ": text_config");
  ignore_common_fields(text_fields);
  text_fields.require("model_type", "gemma3_text", "the language model of gemma3");
  RotaryDecoderConfig c = read_gemma3_text(text_fields);
  text_fields.refuse_unknown();
  c.body_prefixes = {"language_model.model.", "model.language_model."};
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const RotaryDecoderConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const RotaryDecoderConfig&, std::int64_t layer) {
  return "layers." + std::to_string(layer) + ".self_attn";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const RotaryDecoderConfig& c,
                                                        std::int64_t layer) {
  return {.causal = true, .window = c.windows[static_cast<std::size_t>(layer)]};
}

[[nodiscard]] inline AttentionConfig attention_config(const RotaryDecoderConfig& c,
                                                      std::int64_t layer) {
  AttentionConfig a;
  a.query_dim = a.kv_dim = a.out_dim = c.hidden_size;
  a.heads = c.num_attention_heads;
  a.kv_heads = c.num_key_value_heads;
  a.rope_dim = a.v_dim = c.head_dim;
  a.rope = attention_pattern(c, layer).window > 0 ? c.sliding_rope : c.rope;
  a.scale = c.scale;
  a.logit_softcap = c.logit_softcap;
  return a;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const RotaryDecoderConfig& c,
                                            const TensorStore& store) {
  return {store, c.body_prefixes, attention_name(c, 0) + ".q_proj.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const RotaryDecoderConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const AttentionConfig shape = attention_config(c, layer);
  const std::string name = attention_name(c, layer);
  const ProjectionNames names{.o = "o_proj",
                              .q_bias = c.qkv_bias,
                              .k_bias = c.qkv_bias,
                              .v_bias = c.qkv_bias,
                              .o_bias = c.o_bias};
  AttentionWeights<T> a = assemble(shape, read_projections(shape, name, names, weights));
  if (c.head_norm == HeadNorm::kNone) return a;
  const double offset = c.head_norm == HeadNorm::kRmsOffsetByOne ? 1 : 0;
  a.q_head_norm = read_gain(weights, name + ".q_norm", c.head_dim, offset);
  a.k_head_norm = read_gain(weights, name + ".k_norm", c.head_dim, offset);
  a.head_norm_epsilon = c.head_norm_epsilon;
  return a;
}

}  // namespace bda::inline v0::checkpoint

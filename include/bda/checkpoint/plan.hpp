#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bda/checkpoint/load.hpp"
#include "bda/preparation/exactness.hpp"

namespace bda::inline v0::checkpoint {

/// Weights (their number) before and after decomposition. A token costs two operations, a
/// multiplication and an addition, for each.
struct PlannedWeights {
  std::int64_t before = 0, after = 0;

  [[nodiscard]] double change() const {
    return before == 0 ? 0 : static_cast<double>(after) / static_cast<double>(before) - 1;
  }
};

/// What a conversion of a whole model would save, by its config.json alone. Without biases and
/// norms, which it does not change.
struct ConversionPlan {
  std::string model_type;
  DType dtype =
      DType::kF32;           // what config.json says the weights are in, fp32 where it says nothing
  bool quantized = false;    // published in fewer bits than `dtype`, which BD is stored in
  std::int64_t modules = 0;  // attention modules, and how many of them have an exact side:
  std::int64_t qk_modules = 0, vo_modules = 0;
  std::string why_not_qk, why_not_vo;  // of the first module where a side is not exact
  /// The projections from what each head reads to keys and values; with latent attention kv_b_proj.
  PlannedWeights kv;
  /// All projections of the attention: queries, keys, values, output, latents.
  PlannedWeights attention;
};

namespace detail {

/// Whether a norm follows the query and key projections, which exactness asks the weights for.
template <class Config>
bool has_head_norm(const Config&, std::int64_t) {
  return false;
}
inline bool has_head_norm(const RotaryDecoderConfig& c, std::int64_t) {
  return c.head_norm != HeadNorm::kNone;
}
inline bool has_head_norm(const MapConfig& c, std::int64_t i) {
  return !mapped_layer(c, i).first.q_norm.empty();
}

inline void add_module(ConversionPlan& plan, const AttentionConfig& c, bool head_norm) {
  AttentionWeights<float> shape;  // what exactness is judged by, without values
  shape.config = c;
  if (head_norm) shape.q_head_norm.resize(1);
  const auto why_not_qk = why_qk_is_inexact(shape), why_not_vo = why_vo_is_inexact(shape);
  if (why_not_qk && plan.why_not_qk.empty()) plan.why_not_qk = *why_not_qk;
  if (why_not_vo && plan.why_not_vo.empty()) plan.why_not_vo = *why_not_vo;
  ++plan.modules;
  plan.qk_modules += why_not_qk ? 0 : 1;
  plan.vo_modules += why_not_vo ? 0 : 1;

  const std::int64_t key = c.kv_heads * c.qk_dim, value = c.kv_heads * c.v_dim;
  std::int64_t kv = c.kv_dim * (key + value);
  // A rotated key of each head's own is a projection of the same kind; one for all heads is MLA's,
  // whose latents are made from the hidden state.
  if (!c.shared_rope_key) kv += c.kv_dim * c.kv_heads * c.rope_dim;
  std::int64_t all = kv + c.query_dim * c.heads * c.head_dim() + c.heads * c.v_dim * c.out_dim;
  if (c.shared_rope_key) {
    all += c.out_dim * (c.kv_dim + c.rope_dim);
    if (c.query_dim != c.out_dim) all += c.out_dim * c.query_dim;
  }
  const std::int64_t saved = (why_not_qk ? 0 : c.qk_dim * key) + (why_not_vo ? 0 : c.v_dim * value);
  plan.kv.before += kv;
  plan.kv.after += kv - saved;
  plan.attention.before += all;
  plan.attention.after += all - saved;
}

/// The type of the weights by config.json's word.
inline DType planned_dtype(ConfigFields& fields) {
  const std::string name =
      fields.find_text("dtype").value_or(fields.find_text("torch_dtype").value_or("float32"));
  if (name == "float64") return DType::kF64;
  if (name == "float32") return DType::kF32;
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  fields.refuse(fields.find("dtype") != nullptr ? "dtype" : "torch_dtype",
                "float64, float32, float16 or bfloat16");
}

}  // namespace detail

/// What BD saves of the model that a parsed config.json describes; `label` names the file in
/// errors. Throws `Error` as `parse_config` does.
[[nodiscard]] inline ConversionPlan plan_conversion(const Json& config, const std::string& label) {
  ConversionPlan plan;
  ConfigFields fields(config, label);
  plan.model_type = fields.find_text("model_type").value_or("");
  plan.dtype = detail::planned_dtype(fields);
  plan.quantized = fields.find("quantization_config") != nullptr;
  const ModelConfig model = parse_config(config, label);
  constexpr std::int64_t kMostModules = 65536;
  check::in_range(label + ": number of attention modules", attention_count(model), 1, kMostModules);
  std::visit(
      [&](const auto& c) {
        for (std::int64_t i = 0; i < attention_count(c); ++i)
          detail::add_module(plan, attention_config(c, i), detail::has_head_norm(c, i));
      },
      model);
  return plan;
}

}  // namespace bda::inline v0::checkpoint

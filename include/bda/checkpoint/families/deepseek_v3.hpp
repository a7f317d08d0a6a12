#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/latent_attention.hpp"
#include "bda/checkpoint/weight_reader.hpp"

/// DeepSeek-V3 (arXiv 2412.19437) and Kimi K2, which has its layout: the latent attention of
/// DeepSeek-V2, stored in 16 bits or, as published, in fp8 with a scale for each block. The library
/// reads the attention of the `num_hidden_layers` layers; a module that predicts further tokens
/// (`num_nextn_predict_layers`) is left alone.
namespace bda::inline v0::checkpoint {

/// `model_type` "deepseek_v3" or "kimi_k2".
struct DeepseekV3Config : LatentAttentionConfig {
  std::optional<ScaleBlocks> fp8;  // the published layout, with the extents of its blocks
};

namespace detail {

/// fp8 as DeepSeek stores it, and no other quantization. How activations are quantized does not
/// bear on what the weights are.
inline std::optional<ScaleBlocks> read_fp8(ConfigFields& config) {
  const Json* given = config.find("quantization_config");
  if (given == nullptr) return std::nullopt;
  if (!given->is_object()) config.refuse("quantization_config", "an object");
  ConfigFields fields(*given, config.label() + ": quantization_config");
  if (fields.find_text("quant_method") != "fp8") fields.refuse("quant_method", "fp8");
  fields.require("fmt", "e4m3", "as DeepSeek-V3 was published");
  fields.ignore({"activation_scheme", "scale_fmt", "modules_to_not_convert"});
  const Json* block = fields.find("weight_block_size");
  constexpr std::int64_t kLargest = 1 << 20;
  const auto is_extent = [](const Json& e) {
    return e.is_number_integer() && e >= 1 && e <= kLargest;
  };
  if (block == nullptr || !block->is_array() || block->size() != 2 || !is_extent((*block)[0]) ||
      !is_extent((*block)[1]))
    fields.refuse("weight_block_size", "two extents, rows and columns");
  fields.refuse_unknown();
  return ScaleBlocks{(*block)[0].get<std::int64_t>(), (*block)[1].get<std::int64_t>()};
}

inline DeepseekV3Config read_deepseek_v3(ConfigFields& fields) {
  DeepseekV3Config c{};
  const bool interleaved = fields.flag("rope_interleave", true);
  static_cast<LatentAttentionConfig&>(c) =
      read_latent_attention(fields, interleaved ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit);
  c.fp8 = read_fp8(fields);
  ignore_body_fields(fields);
  fields.ignore({"aux_loss_alpha",
                 "ep_size",
                 "first_k_dense_replace",
                 "mlp_layer_types",
                 "moe_intermediate_size",
                 "moe_layer_freq",
                 "n_group",
                 "n_routed_experts",
                 "n_shared_experts",
                 "norm_topk_prob",
                 "num_experts_per_tok",
                 "num_mtp_layers",
                 "num_nextn_predict_layers",
                 "output_router_logits",
                 "routed_scaling_factor",
                 "router_aux_loss_coef",
                 "scoring_func",
                 "seq_aux",
                 "topk_group",
                 "topk_method"});
  return c;
}

}  // namespace detail

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const DeepseekV3Config& c, const TensorStore& store) {
  return {store, {"model."}, attention_name(c, 0) + ".o_proj.weight", c.fp8};
}

}  // namespace bda::inline v0::checkpoint

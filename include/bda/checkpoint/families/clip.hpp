#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"

/// CLIP (arXiv 2103.00020): a text and an image encoder, together or alone. The library reads their
/// attention.
namespace bda::inline v0::checkpoint {

struct ClipTower {
  std::string name;  // "text_model." or "vision_model."
  std::int64_t hidden_size, num_hidden_layers, num_attention_heads;
  bool causal;  // text
};

/// `model_type` "clip" (both towers), "clip_text_model" or "clip_vision_model".
struct ClipConfig {
  std::vector<ClipTower> towers;
};

namespace detail {

/// Where a field is left out it has the default of the published model, as in transformers.
inline ClipTower read_clip_tower(ConfigFields& fields, bool text) {
  require_single_stack(fields);
  ignore_body_fields(fields);
  fields.ignore({"image_size", "num_channels", "patch_size", "projection_dim"});
  ClipTower tower{};
  tower.name = text ? "text_model." : "vision_model.";
  tower.hidden_size = fields.find_extent("hidden_size").value_or(text ? 512 : 768);
  tower.num_hidden_layers = fields.find_extent("num_hidden_layers").value_or(12);
  tower.num_attention_heads = fields.find_extent("num_attention_heads").value_or(text ? 8 : 12);
  tower.causal = text;
  require_multiple(fields, "hidden_size", tower.hidden_size, "num_attention_heads",
                   tower.num_attention_heads);
  return tower;
}

/// The tower within a whole CLIP's config. Older files give its fields twice, in KEY_dict too.
inline ClipTower read_clip_tower_within(ConfigFields& config, const std::string& key, bool text) {
  Json object = Json::object();
  for (const std::string& name : {key, key + "_dict"}) {
    const Json* given = config.find(name);
    if (given == nullptr) continue;
    if (!given->is_object()) config.refuse(name, "an object");
    for (const auto& [field, value] : given->items()) {
      if (!object.contains(field)) object[field] = value;
      if (object[field] != value) config.refuse(name, "the " + field + " of " + key);
    }
  }
  ConfigFields fields(std::move(object), config.label() + ": " + key);
  ignore_common_fields(fields);
  fields.require("model_type", text ? "clip_text_model" : "clip_vision_model", "a tower of CLIP");
  ClipTower tower = read_clip_tower(fields, text);
  fields.refuse_unknown();
  return tower;
}

inline ClipConfig read_clip(ConfigFields& fields) {
  require_single_stack(fields);
  fields.ignore({"initializer_factor", "logit_scale_init_value", "projection_dim"});
  return {{read_clip_tower_within(fields, "text_config", true),
           read_clip_tower_within(fields, "vision_config", false)}};
}
inline ClipConfig read_clip_text(ConfigFields& fields) { return {{read_clip_tower(fields, true)}}; }
inline ClipConfig read_clip_vision(ConfigFields& fields) {
  return {{read_clip_tower(fields, false)}};
}

/// The tower that the `i`-th module is in, and its layer there.
inline std::pair<const ClipTower&, std::int64_t> clip_layer(const ClipConfig& c, std::int64_t i) {
  const std::int64_t first = c.towers.front().num_hidden_layers;
  if (i < first) return {c.towers.front(), i};
  return {c.towers.back(), i - first};
}

}  // namespace detail

/// The text tower's layers, then the image tower's.
[[nodiscard]] inline std::int64_t attention_count(const ClipConfig& c) {
  std::int64_t count = 0;
  for (const ClipTower& tower : c.towers) count += tower.num_hidden_layers;
  return count;
}

/// A tower alone is a body, whose name its tensors may have as a prefix.
[[nodiscard]] inline std::string attention_name(const ClipConfig& c, std::int64_t i) {
  const auto [tower, layer] = detail::clip_layer(c, i);
  return (c.towers.size() > 1 ? tower.name : "") + "encoder.layers." + std::to_string(layer) +
         ".self_attn";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const ClipConfig& c, std::int64_t i) {
  return {.causal = detail::clip_layer(c, i).first.causal};
}

[[nodiscard]] inline AttentionConfig attention_config(const ClipConfig& c, std::int64_t i) {
  const ClipTower& tower = detail::clip_layer(c, i).first;
  return multi_head_config(tower.hidden_size, tower.num_attention_heads);
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const ClipConfig& c, const TensorStore& store) {
  return {store,
          {c.towers.size() > 1 ? std::string() : c.towers.front().name},
          attention_name(c, 0) + ".q_proj.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const ClipConfig& c, std::int64_t i,
                                                 WeightReader<T>& weights) {
  const AttentionConfig a = attention_config(c, i);
  return assemble(a, read_projections(a, attention_name(c, i), {}, weights));
}

}  // namespace bda::inline v0::checkpoint

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "bda/checkpoint/config_fields.hpp"
#include "bda/model/rope.hpp"

namespace bda::inline v0::checkpoint {

/// The rotary embedding that a config.json describes.
struct RopeParameters {
  RopeConfig rope;
  double score_factor = 1.0;  // DeepSeek multiplies the softmax scale by it (YaRN's mscale^2)
};

namespace detail {

/// YaRN. Where `mscale_all_dim` is left out, DeepSeek's code and transformers read a lone `mscale`
/// differently, so that only mscale = 1 has one meaning.
inline RopeParameters read_yarn(ConfigFields& fields, double theta, std::int64_t rope_dim) {
  YarnScaling yarn;
  yarn.factor = fields.positive("factor");
  yarn.original_max_position_embeddings = fields.positive("original_max_position_embeddings");
  yarn.beta_fast = fields.positive("beta_fast", yarn.beta_fast);
  yarn.beta_slow = fields.positive("beta_slow", yarn.beta_slow);
  yarn.mscale = fields.find_number("mscale").value_or(yarn.mscale);
  yarn.mscale_all_dim = fields.find_number("mscale_all_dim").value_or(yarn.mscale_all_dim);
  if (yarn.mscale_all_dim == 0 && yarn.mscale != 1)
    fields.refuse("mscale", "1, where mscale_all_dim is not given");
  if (yarn.mscale == 0) fields.refuse("mscale", "a number other than 0");
  fields.require("truncate", true, "the correction range is rounded to whole dimensions");

  RopeParameters result;
  result.rope.frequencies = yarn_frequencies(rope_dim, theta, yarn);
  const double all_dims = yarn_magnitude(yarn.factor, yarn.mscale_all_dim);
  result.rope.magnitude = yarn_magnitude(yarn.factor, yarn.mscale) / all_dims;
  result.score_factor = all_dims * all_dims;
  return result;
}

inline RopeParameters read_linear(ConfigFields& fields, double theta, std::int64_t rope_dim) {
  const double factor = fields.positive("factor");
  RopeParameters result;
  result.rope.frequencies = rope_frequencies(rope_dim, theta);
  for (double& frequency : result.rope.frequencies) frequency /= factor;
  return result;
}

inline RopeParameters read_llama3(ConfigFields& fields, double theta, std::int64_t rope_dim) {
  Llama3Scaling scaling;
  scaling.factor = fields.positive("factor");
  scaling.low_freq_factor = fields.positive("low_freq_factor");
  scaling.high_freq_factor = fields.positive("high_freq_factor");
  scaling.original_max_position_embeddings = fields.positive("original_max_position_embeddings");
  if (!(scaling.low_freq_factor < scaling.high_freq_factor))
    fields.refuse("low_freq_factor", "less than high_freq_factor");
  RopeParameters result;
  result.rope.frequencies = llama3_frequencies(rope_dim, theta, scaling);
  return result;
}

}  // namespace detail

/// Reads the scaling rule of one rotary embedding from its own object, `fields`, which may hold
/// nothing else. Widths are checked to be even.
[[nodiscard]] inline RopeParameters read_rope_rule(ConfigFields& fields, double theta,
                                                   RopeStyle style, std::int64_t rope_dim,
                                                   std::initializer_list<std::string_view> types) {
  // The limit keeps the list of frequencies small, whatever a file claims.
  constexpr std::int64_t kWidest = 65536;
  if (rope_dim % 2 != 0 || rope_dim < 2 || rope_dim > kWidest)
    throw Error(fields.label() + ": width of the rotary embedding",
                "an even number from 2 to " + std::to_string(kWidest), std::to_string(rope_dim));
  const std::optional<std::string> rope_type = fields.find_text("rope_type");
  const std::optional<std::string> old_type = fields.find_text("type");
  if (rope_type && old_type && *rope_type != *old_type)
    fields.refuse("type", "\"" + *rope_type + "\" (as in rope_type)");
  const std::string type = rope_type.value_or(old_type.value_or("default"));
  if (std::find(types.begin(), types.end(), type) == types.end()) {
    std::string known;
    for (std::string_view name : types) known.append(known.empty() ? "" : ", ").append(name);
    fields.refuse(rope_type ? "rope_type" : "type", "one of " + known);
  }

  RopeParameters result;
  if (type == "yarn")
    result = detail::read_yarn(fields, theta, rope_dim);
  else if (type == "linear")
    result = detail::read_linear(fields, theta, rope_dim);
  else if (type == "llama3")
    result = detail::read_llama3(fields, theta, rope_dim);
  else
    result.rope.frequencies = rope_frequencies(rope_dim, theta);
  result.rope.style = style;
  fields.refuse_unknown();
  return result;
}

/// How a model type spells its rotary embedding outside `rope_parameters`.
struct RopeSpelling {
  std::string_view theta_key = "rope_theta";
  double default_theta = 10000;
  double partial_rotary_factor = 1;  // what the file must say where it says it
};

/// Reads the rotary embedding in either spelling: `rope_theta` beside `rope_scaling`, or both
/// within `rope_parameters`. `types` lists the scaling rules this model type may use, out of
/// "default", "linear", "llama3" and "yarn"; every other rule is refused by name.
[[nodiscard]] inline RopeParameters read_rope_parameters(
    ConfigFields& config, RopeStyle style, std::int64_t rope_dim,
    std::initializer_list<std::string_view> types, const RopeSpelling& spelling = {}) {
  const Json* scaling = config.find("rope_scaling");
  const Json* parameters = config.find("rope_parameters");
  if (scaling != nullptr && parameters != nullptr)
    config.refuse("rope_scaling", "no value beside rope_parameters, which replaces it");
  const char* key = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const Json* object = parameters != nullptr ? parameters : scaling;
  if (object != nullptr && !object->is_object()) config.refuse(key, "an object");

  ConfigFields fields(object != nullptr ? *object : Json::object(), config.label() + ": " + key);
  const std::optional<double> outer_theta = config.find_number(spelling.theta_key);
  const double theta = fields.positive("rope_theta", outer_theta.value_or(spelling.default_theta));
  if (outer_theta.value_or(theta) != theta)
    config.refuse(spelling.theta_key, quote(Json(theta)) + " (as in " + key + ")");
  if (!(theta > 1))
    config.refuse(outer_theta ? spelling.theta_key : std::string_view(key),
                  "a theta of more than 1");
  fields.require("partial_rotary_factor", spelling.partial_rotary_factor,
                 "the rotated share of a head");
  return read_rope_rule(fields, theta, style, rope_dim, types);
}

/// The rotated share of a head, from 0 (exclusive) to 1: within `rope_parameters`, or as `key`.
[[nodiscard]] inline double read_partial_rotary_factor(ConfigFields& config, std::string_view key,
                                                       double fallback) {
  const std::optional<double> outer = config.find_number(key);
  const Json* parameters = config.find("rope_parameters");
  std::optional<double> inner;
  if (parameters != nullptr && parameters->is_object())
    inner = ConfigFields(*parameters, config.label() + ": rope_parameters")
                .find_number("partial_rotary_factor");
  if (inner && outer && *inner != *outer)
    config.refuse(key, quote(Json(*inner)) + " (as in rope_parameters)");
  const double factor = inner.value_or(outer.value_or(fallback));
  if (!(factor > 0) || factor > 1)
    config.refuse(outer ? key : "rope_parameters", "a rotated share of more than 0, at most 1");
  return factor;
}

}  // namespace bda::inline v0::checkpoint

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bda/checkpoint/config_fields.hpp"
#include "bda/core/dtype.hpp"
#include "bda/core/index_set.hpp"
#include "bda/model/latent_change.hpp"

/// The section `bda` of a converted checkpoint's config.json. With the model's own config and the
/// tensors it lists it is all that reading the decomposed attention takes.
///
///     "bda": {
///       "format_version": 1,
///       "attention": [
///         {
///           "name": "layers.0.self_attn",   // the module, as the model's family names it
///           "prefix": "model.",             // what stands before it and its kin in this file
///           "dtype": "bf16",                // of its tensors
///           "basis": "joint_pivot",         // the strategy that chose the channels
///           "qk": {"of": 512, "first": 0, "count": 128},    // S of the keys: a slice, or
///           "vo": {"of": 512, "channels": [3, 5, ...]},     // S of the values: a list; or null
///           "latent": "permuted",           // or "rotated", or "none": folded into latent.kv_a
///           "latent_norm_epsilon": 1e-06,   // null without a latent
///           "head_norm_epsilon": 1e-06,
///           "sinks": [],
///           "tensors": ["q", "k.weight", ...]
///         },
///         null                              // a module that is stored as it was
///       ],
///       "map": {...}                        // only with a family that the user described:
///     }                                     // the description (families/mapped.hpp)
///
/// The tensor `k.weight` of the module above is stored as PREFIX +
/// "layers.0.self_attn.bda.k.weight", where PREFIX is what the names of the model's body start with
/// ("model.", or nothing). What each tensor holds says model/attention_weights.hpp: matrices are
/// [in, out], row-major, heads side by side along the columns; a decomposed projection has [d - r,
/// heads * r] coefficients.
namespace bda::inline v0::checkpoint {

/// How one attention module is stored in BD form.
struct BdAttention {
  std::string name, prefix;
  DType dtype = DType::kF32;
  std::string basis;
  std::optional<IndexSet> qk, vo;  // S, of the module's kv_dim channels
  LatentChange latent = LatentChange::kNone;
  std::optional<double> latent_norm_epsilon;
  double head_norm_epsilon = 1e-6;
  std::vector<double> sinks;
  std::vector<std::string> tensors;  // names within the module
};

/// One entry an attention module, in the family's order; empty where a module is stored as it was.
using BdForm = std::vector<std::optional<BdAttention>>;

inline constexpr const char* kBdSection = "bda";
inline constexpr const char* kBdMap = "map";
inline constexpr std::int64_t kBdFormatVersion = 1;

/// What stands between a module's name and that of its tensor.
inline constexpr const char* kBdInfix = ".bda.";

namespace detail {

/// Wider than any head: a config must not make the reader take memory on its word alone.
inline constexpr std::int64_t kWidestBasis = 65536;

inline Json json_of(const std::optional<IndexSet>& basis) {
  if (!basis) return nullptr;
  if (!basis->is_slice()) return {{"of", basis->dim()}, {"channels", basis->indices()}};
  return {{"of", basis->dim()}, {"first", basis->offset()}, {"count", basis->size()}};
}

inline std::int64_t read_integer(const ConfigFields& fields, const Json& value,
                                 std::string_view key, std::int64_t largest) {
  if (!value.is_number_integer() || value < 0 || value > largest)
    fields.refuse(key, "integers from 0 to " + std::to_string(largest));
  return value.get<std::int64_t>();
}

/// A basis; `label` names the field in errors.
inline std::optional<IndexSet> read_basis(ConfigFields& parent, const char* key) {
  const Json* value = parent.find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) parent.refuse(key, "an object or null");
  ConfigFields fields(*value, parent.label() + ": " + key);
  const std::int64_t dim = fields.extent("of");
  std::optional<IndexSet> basis;
  if (const Json* channels = fields.find("channels")) {
    if (!channels->is_array() || channels->empty() ||
        channels->size() > static_cast<std::size_t>(kWidestBasis))
      fields.refuse("channels", "a list of 1 to " + std::to_string(kWidestBasis) + " channels");
    std::vector<std::int64_t> indices;
    for (const Json& channel : *channels)
      indices.push_back(read_integer(fields, channel, "channels", dim - 1));
    basis.emplace(dim, std::move(indices));
  } else {
    const std::int64_t count = fields.extent("count");
    if (count > std::min(dim, kWidestBasis))
      fields.refuse("count", "at most " + std::to_string(std::min(dim, kWidestBasis)));
    const Json* first = fields.find("first");
    if (first == nullptr) fields.refuse("first", "an integer");
    basis = IndexSet::slice(dim, read_integer(fields, *first, "first", dim - count), count);
  }
  fields.refuse_unknown();
  return basis;
}

inline const Json& read_array(ConfigFields& fields, const char* key) {
  const Json* value = fields.find(key);
  if (value == nullptr || !value->is_array()) fields.refuse(key, "an array");
  return *value;
}

template <class Parse>
auto read_named(ConfigFields& fields, const char* key, const Parse& parse) {
  const std::string text = fields.find_text(key).value_or("");
  try {
    return parse(text);
  } catch (const Error& error) {
    fields.refuse(key, error.expected());
  }
}

inline BdAttention read_bd_attention(ConfigFields& fields) {
  BdAttention a;
  a.name = fields.find_text("name").value_or("");
  a.prefix = fields.find_text("prefix").value_or("");
  a.dtype = read_named(fields, "dtype", [](std::string_view text) { return parse_dtype(text); });
  a.basis = fields.find_text("basis").value_or("");
  a.qk = read_basis(fields, "qk");
  a.vo = read_basis(fields, "vo");
  a.latent =
      read_named(fields, "latent", [](std::string_view text) { return parse_latent_change(text); });
  if (fields.find("latent_norm_epsilon") != nullptr)
    a.latent_norm_epsilon = fields.positive("latent_norm_epsilon");
  a.head_norm_epsilon = fields.positive("head_norm_epsilon");
  for (const Json& sink : read_array(fields, "sinks")) {
    if (!sink.is_number()) fields.refuse("sinks", "numbers");
    a.sinks.push_back(sink.get<double>());
  }
  for (const Json& tensor : read_array(fields, "tensors")) {
    if (!tensor.is_string()) fields.refuse("tensors", "names");
    a.tensors.push_back(tensor.get<std::string>());
  }
  fields.refuse_unknown();
  return a;
}

}  // namespace detail

/// The section's value.
[[nodiscard]] inline Json json_of(const BdForm& form) {
  Json modules = Json::array();
  for (const std::optional<BdAttention>& a : form) {
    if (!a) {
      modules.push_back(nullptr);
      continue;
    }
    modules.push_back({{"name", a->name},
                       {"prefix", a->prefix},
                       {"dtype", name_of(a->dtype)},
                       {"basis", a->basis},
                       {"qk", detail::json_of(a->qk)},
                       {"vo", detail::json_of(a->vo)},
                       {"latent", name_of(a->latent)},
                       {"latent_norm_epsilon",
                        a->latent_norm_epsilon ? Json(*a->latent_norm_epsilon) : Json(nullptr)},
                       {"head_norm_epsilon", a->head_norm_epsilon},
                       {"sinks", a->sinks},
                       {"tensors", a->tensors}});
  }
  return {{"format_version", kBdFormatVersion}, {"attention", modules}};
}

/// Reads the section; `label` names it in errors. Throws `Error` on a version, a field or a value
/// that the library does not know.
[[nodiscard]] inline BdForm parse_bd_form(const Json& section, const std::string& label) {
  if (!section.is_object()) throw Error(label, "an object", quote(section));
  ConfigFields fields(section, label);
  if (fields.find("format_version") == nullptr)
    fields.refuse("format_version", std::to_string(kBdFormatVersion));
  fields.require("format_version", kBdFormatVersion, "the format that this library reads");
  BdForm form;
  for (const Json& module : detail::read_array(fields, "attention")) {
    const std::string name = label + ": attention[" + std::to_string(form.size()) + "]";
    std::optional<BdAttention>& entry = form.emplace_back();
    if (module.is_null()) continue;
    if (!module.is_object()) throw Error(name, "an object or null", quote(module));
    ConfigFields entry_fields(module, name);
    entry = detail::read_bd_attention(entry_fields);
  }
  fields.ignore({kBdMap});  // for the reader of the model's config
  fields.refuse_unknown();
  return form;
}

}  // namespace bda::inline v0::checkpoint

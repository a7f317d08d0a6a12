#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/config_fields.hpp"
#include "bda/checkpoint/convert.hpp"
#include "bda/checkpoint/mapped_file.hpp"
#include "bda/checkpoint/projections.hpp"
#include "bda/checkpoint/rope_parameters.hpp"

/// A family that the library does not know, described by its user: where the tensors of the
/// attention modules are, and what happens between the projections and the scores. The latter is
/// what decides which sides are exact (preparation/exactness.hpp).
///
///     {"attention": [{
///        "name": "blocks.{}.attn",  // in the checkpoint; {} is the layer
///        "layers": 12,
///        "heads": 12, "kv_heads": 4, "head_dim": 64,  // kv_heads: as heads where left out
///        "query_dim": 768,                            // kv_dim, out_dim: as query_dim
///        "v_head_dim": 64,                            // as head_dim
///        "scale": 0.125,                              // multiplies q k^T
///        "logit_softcap": 50,                         // none
///        "q": "wq", "k": "wk", "v": "wv",             // the tensors NAME.wq.weight, ...
///        "qkv": "wqkv", "qkv_order": "projections",   // or one tensor in their place: [q | k |
///        v],
///                                                     // or "heads": [heads, q | k | v]
///        "o": "wo",
///        "biases": ["q", "k", "v", "o"],              // those that have NAME.wq.bias, ...; none
///        "stored": "out_in",                          // or "in_out"
///        "rotary": {"channels": 32, "part": "first",  // of each head, or "last"; all of it where
///                   "style": "half_split",            // left out; or "interleaved"
///                   "rope_theta": 10000},             // and rope_scaling's fields
///        "head_norm": {"q": "q_norm", "k": "k_norm",  // an RMS norm of each head, of gain
///                      "epsilon": 1e-6, "offset": 0}, // offset + NAME.q_norm.weight
///        "causal": true, "window": 0, "cross": false, "position_bias": false
///     }]}
///
/// Fields from "logit_softcap" on that are left out have the value above that changes nothing.
/// Multi-head latent attention cannot be described: its families are known.
namespace bda::inline v0::checkpoint {

struct MappedAttention {
  enum class Fused { kNot, kByProjection, kByHead };

  std::string name;  // with {} for the layer
  std::int64_t layers;
  AttentionConfig config;
  AttentionPattern pattern;
  ProjectionNames projections;  // q, k and v are unused where `qkv` is given
  std::string qkv;
  Fused fused = Fused::kNot;
  bool stored_in_out = false;
  bool rotated_first = true;
  std::string q_norm, k_norm;  // empty for none
  double head_norm_epsilon = 1e-6, head_norm_offset = 0;
};

/// What a file for `--map` says.
struct MapConfig {
  std::vector<MappedAttention> attention;  // at least one
};

namespace detail {

/// A text that must be there and not be empty.
inline std::string read_name(ConfigFields& fields, std::string_view key) {
  std::string name = fields.find_text(key).value_or("");
  if (name.empty()) fields.refuse(key, "a name");
  return name;
}

/// One of two words.
inline bool read_choice(ConfigFields& fields, std::string_view key, std::string_view fallback,
                        std::string_view no, std::string_view yes) {
  const std::string word = fields.find_text(key).value_or(std::string(fallback));
  if (word != no && word != yes)
    fields.refuse(key, "\"" + std::string(no) + "\" or \"" + std::string(yes) + "\"");
  return word == yes;
}

inline void read_mapped_names(ConfigFields& fields, MappedAttention& m) {
  ProjectionNames& p = m.projections;
  if (fields.find("qkv") != nullptr) {
    m.qkv = read_name(fields, "qkv");
    for (const char* key : {"q", "k", "v"})
      if (fields.find(key) != nullptr) fields.refuse(key, "no name beside qkv");
    m.fused = read_choice(fields, "qkv_order", "", "projections", "heads")
                  ? MappedAttention::Fused::kByHead
                  : MappedAttention::Fused::kByProjection;
    if (m.fused == MappedAttention::Fused::kByHead && m.config.heads != m.config.kv_heads)
      fields.refuse("qkv_order", "\"projections\", with fewer key heads than query heads");
    if (m.config.query_dim != m.config.kv_dim)
      fields.refuse("kv_dim", "query_dim, where qkv is one tensor");
  } else {
    p.q = read_name(fields, "q");
    p.k = read_name(fields, "k");
    p.v = read_name(fields, "v");
  }
  p.o = read_name(fields, "o");
  p.q_bias = p.k_bias = p.v_bias = p.o_bias = false;
  if (const Json* biases = fields.find("biases")) {
    if (!biases->is_array()) fields.refuse("biases", "a list of q, k, v and o");
    for (const Json& bias : *biases) {
      bool* flag = bias == "q"   ? &p.q_bias
                   : bias == "k" ? &p.k_bias
                   : bias == "v" ? &p.v_bias
                   : bias == "o" ? &p.o_bias
                                 : nullptr;
      if (flag == nullptr) fields.refuse("biases", "a list of q, k, v and o");
      *flag = true;
    }
  }
  if (!m.qkv.empty() && (p.q_bias != p.k_bias || p.k_bias != p.v_bias))
    fields.refuse("biases", "q, k and v together, where qkv is one tensor");
  m.stored_in_out = read_choice(fields, "stored", "out_in", "out_in", "in_out");
}

inline void read_mapped_rotary(ConfigFields& fields, std::int64_t head_dim, MappedAttention& m) {
  m.config.qk_dim = head_dim;
  const Json* rotary = fields.find("rotary");
  if (rotary == nullptr) return;
  if (!rotary->is_object()) fields.refuse("rotary", "an object");
  ConfigFields rule(*rotary, fields.label() + ".rotary");
  const std::int64_t channels = rule.find_extent("channels").value_or(head_dim);
  if (channels > head_dim)
    rule.refuse("channels", "at most head_dim = " + std::to_string(head_dim));
  m.rotated_first = !read_choice(rule, "part", "first", "first", "last");
  const bool interleaved = read_choice(rule, "style", "", "half_split", "interleaved");
  const double theta = rule.positive("rope_theta");
  if (!(theta > 1)) rule.refuse("rope_theta", "more than 1");
  m.config.rope =
      read_rope_rule(rule, theta, interleaved ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit,
                     channels, {"default", "linear", "llama3", "yarn"})
          .rope;
  m.config.rope_dim = channels;
  m.config.qk_dim = head_dim - channels;
}

inline void read_mapped_head_norm(ConfigFields& fields, MappedAttention& m) {
  const Json* given = fields.find("head_norm");
  if (given == nullptr) return;
  if (!given->is_object()) fields.refuse("head_norm", "an object");
  ConfigFields norm(*given, fields.label() + ".head_norm");
  m.q_norm = read_name(norm, "q");
  m.k_norm = read_name(norm, "k");
  m.head_norm_epsilon = norm.positive("epsilon");
  m.head_norm_offset = norm.find_number("offset").value_or(0);
  norm.refuse_unknown();
  // The gains are in the checkpoint's channel order, which is then the library's.
  if (m.config.rope_dim > 0 && m.config.qk_dim > 0 && m.rotated_first)
    fields.refuse("head_norm", "none, where a part of the head that is not its last is rotated");
}

inline MappedAttention read_mapped(ConfigFields fields) {
  MappedAttention m;
  m.name = read_name(fields, "name");
  m.layers = fields.extent("layers");
  if (m.layers > 1 && m.name.find("{}") == std::string::npos)
    fields.refuse("name", "{} in the place of the layer");
  AttentionConfig& c = m.config;
  c.heads = fields.extent("heads");
  c.kv_heads = fields.find_extent("kv_heads").value_or(c.heads);
  if (c.heads % c.kv_heads != 0)
    fields.refuse("kv_heads", "a divisor of heads = " + std::to_string(c.heads));
  const std::int64_t head_dim = fields.extent("head_dim");
  c.v_dim = fields.find_extent("v_head_dim").value_or(head_dim);
  constexpr std::int64_t kWidest = 2147483647;  // of all heads: sums of widths cannot overflow
  if (c.heads > kWidest / std::max(head_dim, c.v_dim))
    fields.refuse("heads", "at most " + std::to_string(kWidest) + " channels in all");
  c.query_dim = fields.extent("query_dim");
  c.kv_dim = fields.find_extent("kv_dim").value_or(c.query_dim);
  c.out_dim = fields.find_extent("out_dim").value_or(c.query_dim);
  c.scale = fields.positive("scale");
  if (fields.find("logit_softcap") != nullptr) c.logit_softcap = fields.positive("logit_softcap");
  read_mapped_rotary(fields, head_dim, m);
  read_mapped_names(fields, m);
  read_mapped_head_norm(fields, m);
  m.pattern.causal = fields.flag("causal", true);
  const Json* window = fields.find("window");
  if (window != nullptr && *window != 0) m.pattern.window = *fields.find_extent("window");
  m.pattern.cross = fields.flag("cross", false);
  m.pattern.position_bias = fields.flag("position_bias", false);
  fields.refuse_unknown();
  return m;
}

/// The description that the `i`-th module is in, and its layer there.
inline std::pair<const MappedAttention&, std::int64_t> mapped_layer(const MapConfig& c,
                                                                    std::int64_t i) {
  const auto* m = c.attention.data();
  for (; i >= m->layers; ++m) i -= m->layers;
  return {*m, i};
}

}  // namespace detail

/// Reads a parsed description; `label` names the file in errors. Throws `Error` on what is missing,
/// unknown or contradictory.
[[nodiscard]] inline MapConfig parse_map(const Json& json, const std::string& label) {
  ConfigFields fields(json, label);
  const Json* attention = fields.find("attention");
  if (attention == nullptr || !attention->is_array() || attention->empty())
    fields.refuse("attention", "a list of attention modules");
  fields.refuse_unknown();
  MapConfig c;
  for (std::size_t i = 0; i < attention->size(); ++i) {
    const std::string name = label + ": attention[" + std::to_string(i) + "]";
    if (!(*attention)[i].is_object()) throw Error(name, "an object", quote((*attention)[i]));
    c.attention.push_back(detail::read_mapped(ConfigFields((*attention)[i], name)));
  }
  return c;
}

/// Reads the file `path`.
[[nodiscard]] inline MapConfig read_map(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_map(
      parse_json_object({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()},
                        path.string()),
      path.string());
}

[[nodiscard]] inline std::int64_t attention_count(const MapConfig& c) {
  std::int64_t count = 0;
  for (const MappedAttention& m : c.attention) count += m.layers;
  return count;
}

[[nodiscard]] inline std::string attention_name(const MapConfig& c, std::int64_t i) {
  const auto [m, layer] = detail::mapped_layer(c, i);
  std::string name = m.name;
  if (const auto at = name.find("{}"); at != std::string::npos)
    name.replace(at, 2, std::to_string(layer));
  return name;
}

[[nodiscard]] inline AttentionPattern attention_pattern(const MapConfig& c, std::int64_t i) {
  return detail::mapped_layer(c, i).first.pattern;
}

[[nodiscard]] inline AttentionConfig attention_config(const MapConfig& c, std::int64_t i) {
  return detail::mapped_layer(c, i).first.config;
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const MapConfig&, const TensorStore& store) {
  return {store, {}, ""};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const MapConfig& config, std::int64_t i,
                                                 WeightReader<T>& weights) {
  const MappedAttention& m = detail::mapped_layer(config, i).first;
  const AttentionConfig& c = m.config;
  const std::string module = attention_name(config, i) + ".";
  const auto read = [&](const std::string& name, std::int64_t in, std::int64_t out, bool bias) {
    if (!m.stored_in_out) return weights.linear(module + name, in, out, bias);
    Linear<T> layer;
    layer.weight = weights.matrix(module + name + ".weight", in, out);
    if (bias) layer.bias = weights.vector(module + name + ".bias", out);
    return layer;
  };
  const std::int64_t q = c.heads * c.head_dim(), k = c.kv_heads * c.head_dim();
  const std::int64_t v = c.kv_heads * c.v_dim;
  Projections<T> p;
  if (m.qkv.empty()) {
    p.q = read(m.projections.q, c.query_dim, q, m.projections.q_bias);
    p.k = read(m.projections.k, c.kv_dim, k, m.projections.k_bias);
    p.v = read(m.projections.v, c.kv_dim, v, m.projections.v_bias);
  } else {
    const Linear<T> qkv = read(m.qkv, c.query_dim, q + k + v, m.projections.q_bias);
    const std::int64_t groups = m.fused == MappedAttention::Fused::kByHead ? c.heads : 1;
    const std::int64_t group = (q + k + v) / groups;
    p.q = take_columns(qkv, group, 0, q / groups);
    p.k = take_columns(qkv, group, q / groups, k / groups);
    p.v = take_columns(qkv, group, (q + k) / groups, v / groups);
  }
  p.o = read(m.projections.o, c.heads * c.v_dim, c.out_dim, m.projections.o_bias);
  AttentionWeights<T> a = assemble(c, std::move(p), m.rotated_first);
  if (m.q_norm.empty()) return a;
  a.q_head_norm = read_gain(weights, module + m.q_norm, c.head_dim(), m.head_norm_offset);
  a.k_head_norm = read_gain(weights, module + m.k_norm, c.head_dim(), m.head_norm_offset);
  a.head_norm_epsilon = m.head_norm_epsilon;
  return a;
}

}  // namespace bda::inline v0::checkpoint

#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "bda/checkpoint/bd_form.hpp"
#include "bda/checkpoint/safetensors_writer.hpp"
#include "bda/checkpoint/weight_reader.hpp"
#include "bda/model/attention_weights.hpp"

/// The tensors of attention modules in BD form (their names: bd_form.hpp).
namespace bda::inline v0::checkpoint {

/// A decomposed module's tensors, to be written; `module` is its name with the body's prefix. They
/// refer to `weights`. Empty members are left out.
template <Storage T>
[[nodiscard]] std::vector<Tensor> bd_tensors(const AttentionWeights<T>& weights,
                                             const std::string& module) {
  std::vector<Tensor> tensors;
  for_each_member(weights, [&](const char* name, const auto& member) {
    if (member.empty()) return;
    std::vector<std::int64_t> shape{static_cast<std::int64_t>(member.size())};
    if constexpr (requires { member.rows; }) shape = {member.rows, member.cols};
    tensors.push_back(
        make_tensor<T>(module + kBdInfix + name, std::move(shape),
                       std::span(member.data(), static_cast<std::size_t>(member.size()))));
  });
  return tensors;
}

/// What config.json says of the module beside its tensors.
template <Storage T>
[[nodiscard]] BdAttention bd_attention(const AttentionWeights<T>& weights, std::string name,
                                       std::string basis, LatentChange latent) {
  BdAttention a;
  a.name = std::move(name);
  a.dtype = StorageTraits<T>::dtype;
  a.basis = std::move(basis);
  a.qk = weights.k.basis;
  a.vo = weights.v.basis;
  a.latent = latent;
  if (weights.latent) a.latent_norm_epsilon = weights.latent->norm_epsilon;
  a.head_norm_epsilon = weights.head_norm_epsilon;
  a.sinks = weights.sinks;
  for_each_member(weights, [&](const char* member_name, const auto& member) {
    if (!member.empty()) a.tensors.emplace_back(member_name);
  });
  return a;
}

/// Reads a module that `form` describes. Throws `Error` where a tensor is missing, unknown or does
/// not fit the config.
template <Storage T>
[[nodiscard]] AttentionWeights<T> read_bd_attention(const AttentionConfig& config,
                                                    const BdAttention& form,
                                                    WeightReader<T>& reader) {
  AttentionWeights<T> w;
  w.config = config;
  w.k.basis = form.qk;
  w.v.basis = form.vo;
  w.sinks = form.sinks;
  w.head_norm_epsilon = form.head_norm_epsilon;
  if (form.latent_norm_epsilon) w.latent.emplace().norm_epsilon = *form.latent_norm_epsilon;
  std::vector<std::string> unknown = form.tensors;
  for_each_member(w, [&](const char* name, auto& member) {
    if (std::erase(unknown, name) == 0) return;
    const std::string full = form.name + kBdInfix + name;
    const std::vector<std::int64_t>& shape = reader.tensor(full).shape;
    constexpr bool is_matrix = requires { member.rows; };
    if (shape.size() != (is_matrix ? 2 : 1))
      throw Error(reader.tensor(full).label() + ".shape", is_matrix ? "two extents" : "one extent",
                  shape_text(shape));
    if constexpr (is_matrix)
      member = reader.matrix(full, shape[0], shape[1]);
    else
      member = reader.vector(full, shape[0]);
  });
  const std::string label = reader.store().folder().string() + ": " + form.name + kBdInfix;
  if (!unknown.empty()) throw Error(label, "tensors of an attention module", unknown.front());
  try {
    validate(w);
  } catch (const Error& error) {
    throw Error(label + error.name(), error.expected(), error.given());
  }
  return w;
}

/// The `i`-th attention module as it is stored: plain, or decomposed where the checkpoint was
/// converted.
template <class Config, Storage T>
[[nodiscard]] AttentionWeights<T> read_stored_attention(const Config& config, std::int64_t i,
                                                        WeightReader<T>& reader) {
  if (const BdAttention* form = reader.bd_attention(i))
    return read_bd_attention(attention_config(config, i), *form, reader);
  return read_attention(config, i, reader);
}

}  // namespace bda::inline v0::checkpoint

#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <type_traits>
#include <variant>

#include "bda/checkpoint/bd_form.hpp"
#include "bda/checkpoint/bd_tensors.hpp"
#include "bda/checkpoint/config.hpp"
#include "bda/checkpoint/folder_file.hpp"
#include "bda/checkpoint/tensor_store.hpp"
#include "bda/checkpoint/transformer.hpp"
#include "bda/checkpoint/weight_reader.hpp"

namespace bda::inline v0::checkpoint {

/// An open checkpoint folder: config.json is read, the tensors are mapped and not yet read.
struct Checkpoint {
  ModelConfig config;
  TensorStore tensors;
  BdForm bd = {};  // empty unless the checkpoint was converted
};

/// How many attention modules the checkpoint has: one a layer, or two a layer of a decoder that
/// also attends to an encoder.
[[nodiscard]] inline std::int64_t attention_count(const ModelConfig& config) {
  return std::visit([](const auto& c) { return attention_count(c); }, config);
}

namespace detail {

inline void check_attention(const ModelConfig& config, std::int64_t i) {
  check::in_range("attention", i, 0, attention_count(config) - 1);
}

}  // namespace detail

/// The name of the `i`-th attention module, without the prefix that a body's tensors may have:
/// "layers.3.self_attn".
[[nodiscard]] inline std::string attention_name(const ModelConfig& config, std::int64_t i) {
  detail::check_attention(config, i);
  return std::visit([&](const auto& c) { return attention_name(c, i); }, config);
}

/// The shape and score function of the `i`-th attention module.
[[nodiscard]] inline AttentionConfig attention_config(const ModelConfig& config, std::int64_t i) {
  detail::check_attention(config, i);
  return std::visit([&](const auto& c) { return attention_config(c, i); }, config);
}

/// What the model masks and adds in the `i`-th attention module.
[[nodiscard]] inline AttentionPattern attention_pattern(const ModelConfig& config, std::int64_t i) {
  detail::check_attention(config, i);
  return std::visit([&](const auto& c) { return attention_pattern(c, i); }, config);
}

/// Throws `Error` unless a converted checkpoint's section speaks of this model's attention modules.
/// `label` names its config.json.
inline void check_bd_form(const ModelConfig& config, const BdForm& form, const std::string& label) {
  if (form.empty()) return;
  const std::string name = label + ": " + kBdSection + ".attention";
  check::equal(name + ".size", static_cast<std::int64_t>(form.size()), attention_count(config),
               "the model's attention modules");
  for (std::size_t i = 0; i < form.size(); ++i)
    if (form[i])
      if (const std::string module = attention_name(config, static_cast<std::int64_t>(i));
          form[i]->name != module)
        throw Error(name + "[" + std::to_string(i) + "].name", module, form[i]->name);
}

namespace detail {

/// A converted checkpoint, whose parsed config.json has the section `bda`.
inline Checkpoint open_converted(const std::filesystem::path& folder, Json config,
                                 const std::string& label) {
  const std::string section_label = label + ": " + kBdSection;
  const Json section = std::move(config[kBdSection]);
  config.erase(kBdSection);
  BdForm form = parse_bd_form(section, section_label);
  const auto map = section.find(kBdMap);
  ModelConfig model = map == section.end()
                          ? parse_config(config, label)
                          : ModelConfig(parse_map(*map, section_label + "." + kBdMap));
  check_bd_form(model, form, label);
  return {std::move(model), TensorStore(folder), std::move(form)};
}

}  // namespace detail

/// Opens a folder in the layout of Hugging Face checkpoints, as published or as converted by
/// `convert_checkpoint`. `map`, where it is not empty, is a file that describes the attention
/// (families/mapped.hpp), whatever config.json says. Throws `Error` for what is missing, damaged or
/// not implemented.
[[nodiscard]] inline Checkpoint open_checkpoint(const std::filesystem::path& folder,
                                                const std::filesystem::path& map = {}) {
  const MappedFile file(file_in_folder(folder, "config.json"));
  const std::string label = file.path().string();
  Json config = parse_json_object(file.text(), label);
  if (config.contains(kBdSection)) {
    if (!map.empty())
      throw Error(label + ": " + kBdSection, "no such section beside a map of the tensors",
                  "that of a converted checkpoint");
    return detail::open_converted(folder, std::move(config), label);
  }
  return {map.empty() ? parse_config(config, label) : ModelConfig(read_map(map)),
          TensorStore(folder)};
}

/// The weights of the `i`-th attention module, in T. Reads no other: a checkpoint larger than
/// memory can be worked through module by module.
template <Storage T>
[[nodiscard]] AttentionWeights<T> load_attention_layer(const Checkpoint& checkpoint,
                                                       std::int64_t i) {
  detail::check_attention(checkpoint.config, i);
  return std::visit(
      [&](const auto& config) {
        WeightReader<T> weights = weight_reader<T>(config, checkpoint.tensors);
        weights.set_bd_form(checkpoint.bd);
        return read_stored_attention(config, i, weights);
      },
      checkpoint.config);
}

/// Families whose whole language model the library reads; of the others it reads the attention.
template <class Config>
concept LanguageModel = requires(const Config& config, WeightReader<float>& weights) {
  read_transformer(config, weights);
};

/// The whole model, in T. Beside it, memory holds one tensor at a time. Throws `Error` for a family
/// of which the library reads the attention alone.
template <Storage T>
[[nodiscard]] TransformerWeights<T> load_transformer(const Checkpoint& checkpoint) {
  return std::visit(
      [&](const auto& config) -> TransformerWeights<T> {
        if constexpr (LanguageModel<std::decay_t<decltype(config)>>) {
          WeightReader<T> weights = weight_reader<T>(config, checkpoint.tensors);
          weights.set_bd_form(checkpoint.bd);
          return read_transformer(config, weights);
        } else {
          throw Error(checkpoint.tensors.folder().string(),
                      "a language model that the library runs (deepseek_v2, gpt2 or llama)",
                      "a model whose attention alone it reads");
        }
      },
      checkpoint.config);
}
template <Storage T>
[[nodiscard]] TransformerWeights<T> load_transformer(const std::filesystem::path& folder) {
  return load_transformer<T>(open_checkpoint(folder));
}

}  // namespace bda::inline v0::checkpoint

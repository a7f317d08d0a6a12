#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <type_traits>
#include <variant>

#include "bda/checkpoint/config.hpp"
#include "bda/checkpoint/tensor_store.hpp"
#include "bda/checkpoint/transformer.hpp"
#include "bda/checkpoint/weight_reader.hpp"

namespace bda::inline v0::checkpoint {

/// An open checkpoint folder: config.json is read, the tensors are mapped and not yet read.
struct Checkpoint {
  ModelConfig config;
  TensorStore tensors;
};

/// Opens a folder in the layout of Hugging Face checkpoints. Throws `Error` for what is missing,
/// damaged or not implemented.
[[nodiscard]] inline Checkpoint open_checkpoint(const std::filesystem::path& folder) {
  return {read_config(folder / "config.json"), TensorStore(folder)};
}

/// The same for a folder whose attention the file `map` describes (families/mapped.hpp), whatever
/// its config.json says.
[[nodiscard]] inline Checkpoint open_checkpoint(const std::filesystem::path& folder,
                                                const std::filesystem::path& map) {
  return {read_map(map), TensorStore(folder)};
}

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

/// The weights of the `i`-th attention module, in T. Reads no other: a checkpoint larger than
/// memory can be worked through module by module.
template <Storage T>
[[nodiscard]] AttentionWeights<T> load_attention_layer(const Checkpoint& checkpoint,
                                                       std::int64_t i) {
  detail::check_attention(checkpoint.config, i);
  return std::visit(
      [&](const auto& config) {
        WeightReader<T> weights = weight_reader<T>(config, checkpoint.tensors);
        return read_attention(config, i, weights);
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

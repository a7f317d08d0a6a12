#pragma once

#include <cstdint>
#include <filesystem>
#include <utility>
#include <variant>

#include "bda/checkpoint/config.hpp"
#include "bda/checkpoint/deepseek_v2.hpp"
#include "bda/checkpoint/gpt2.hpp"
#include "bda/checkpoint/llama.hpp"
#include "bda/checkpoint/tensor_store.hpp"
#include "bda/checkpoint/transformer.hpp"

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

[[nodiscard]] inline std::int64_t layer_count(const ModelConfig& config) {
  if (const auto* gpt2 = std::get_if<Gpt2Config>(&config)) return gpt2->n_layer;
  if (const auto* llama = std::get_if<LlamaConfig>(&config)) return llama->num_hidden_layers;
  return std::get<DeepseekV2Config>(config).num_hidden_layers;
}

/// The shape and score function of one layer's attention.
[[nodiscard]] inline AttentionConfig attention_config(const ModelConfig& config,
                                                      std::int64_t layer) {
  return std::visit([&](const auto& c) { return attention_config(c, layer); }, config);
}

/// The attention weights of one layer, in T. Reads no other layer: a checkpoint larger than memory
/// can be worked through layer by layer.
template <Storage T>
[[nodiscard]] AttentionWeights<T> load_attention_layer(const Checkpoint& checkpoint,
                                                       std::int64_t layer) {
  check::in_range("layer", layer, 0, layer_count(checkpoint.config) - 1);
  return std::visit(
      [&](const auto& config) {
        WeightReader<T> weights = weight_reader<T>(config, checkpoint.tensors);
        return read_attention(config, layer, weights);
      },
      checkpoint.config);
}

/// The whole model, in T. Beside it, memory holds one tensor at a time.
template <Storage T>
[[nodiscard]] TransformerWeights<T> load_transformer(const Checkpoint& checkpoint) {
  return std::visit(
      [&](const auto& config) {
        WeightReader<T> weights = weight_reader<T>(config, checkpoint.tensors);
        return read_transformer(config, weights);
      },
      checkpoint.config);
}
template <Storage T>
[[nodiscard]] TransformerWeights<T> load_transformer(const std::filesystem::path& folder) {
  return load_transformer<T>(open_checkpoint(folder));
}

}  // namespace bda::inline v0::checkpoint

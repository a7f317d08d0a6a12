#pragma once

#include <cstdint>
#include <type_traits>
#include <variant>

#include "bda/checkpoint/transformer.hpp"

/// Bytes of the stored weights of a model's parts.
namespace perplexity {

namespace checkpoint = bda::checkpoint;

template <class T>
std::int64_t bytes_of(const std::vector<T>& v) {
  return static_cast<std::int64_t>(v.size() * sizeof(T));
}

template <class T>
std::int64_t bytes_of(const checkpoint::Norm<T>& norm) {
  return bytes_of(norm.weight) + bytes_of(norm.bias);
}

template <class T>
std::int64_t bytes_of(const checkpoint::Linear<T>& linear) {
  return linear.weight.bytes() + bytes_of(linear.bias);
}

template <class T>
std::int64_t bytes_of(const checkpoint::GatedMlp<T>& mlp) {
  return bytes_of(mlp.gate) + bytes_of(mlp.up) + bytes_of(mlp.down);
}

template <class T>
std::int64_t bytes_of(const checkpoint::PlainMlp<T>& mlp) {
  return bytes_of(mlp.up) + bytes_of(mlp.down);
}

template <class T>
std::int64_t bytes_of(const checkpoint::MoeMlp<T>& moe) {
  std::int64_t total = moe.router.bytes() + (moe.shared ? bytes_of(*moe.shared) : 0);
  for (const checkpoint::GatedMlp<T>& expert : moe.experts) total += bytes_of(expert);
  return total;
}

/// The whole model; a tied output embedding counts once.
template <class T>
std::int64_t bytes_of(const checkpoint::TransformerWeights<T>& model) {
  std::int64_t total = model.embedding.bytes() + model.positions.bytes() + model.lm_head.bytes() +
                       bytes_of(model.final_norm);
  for (const checkpoint::TransformerLayer<T>& layer : model.layers)
    total += bytes_of(layer.attention_norm) + layer.attention.bytes() + bytes_of(layer.mlp_norm) +
             std::visit([](const auto& mlp) { return bytes_of(mlp); }, layer.mlp);
  return total;
}

}  // namespace perplexity

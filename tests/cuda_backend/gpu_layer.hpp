#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attention/random_layer.hpp"
#include "bda/model/attention_weights.hpp"
#include "cuda/device_buffer.hpp"

/// Random layers of every kind the backend takes, and device memory for their operands.
namespace bda::testing {

struct Kind {
  std::string name;
  std::int64_t heads = 4, kv_heads = 4, nope = 64, rope = 0, v = 64, kv_dim = 256;
  bool interleaved = true;
  LayerTraits traits;
};

inline const std::vector<Kind>& kinds() {
  constexpr BasisKind kSlice = BasisKind::kSlice, kScattered = BasisKind::kScattered;
  static const std::vector<Kind> all{
      {.name = "multi-head, biases, scattered bases",
       .traits = {.biases = true, .k_basis = kScattered, .v_basis = kScattered}},
      {.name = "multi-head, plain, sinks", .traits = {.biases = true, .sinks = true}},
      {.name = "grouped, rotated keys, values decomposed",
       .heads = 8,
       .kv_heads = 2,
       .nope = 0,
       .rope = 32,
       .v = 32,
       .interleaved = false,
       .traits = {.v_basis = kSlice}},
      {.name = "latent, both bases slices",
       .rope = 32,
       .traits = {.latent = true, .k_basis = kSlice, .v_basis = kSlice}},
      {.name = "latent of DeepSeek's widths, query compressed",
       .heads = 2,
       .kv_heads = 2,
       .nope = 128,
       .rope = 64,
       .v = 128,
       .kv_dim = 512,
       .traits = {.latent = true, .q_lora = true, .k_basis = kSlice, .v_basis = kSlice}},
      {.name = "head norms before the rotation, softcap",
       .heads = 4,
       .kv_heads = 2,
       .nope = 32,
       .rope = 32,
       .traits = {.head_norms = true, .softcap = true, .v_basis = kScattered}},
      {.name = "cross-attention",
       .traits = {.cross = true, .k_basis = kScattered, .v_basis = kSlice}},
  };
  return all;
}

template <class T>
AttentionWeights<T> make_layer(Random& random, const Kind& kind) {
  AttentionWeights<T> w;
  bda::AttentionConfig& c = w.config;
  LayerTraits traits = kind.traits;
  traits.slice_begin = 64;  // as the sm_90a kernels want it
  const std::int64_t hidden = 192;
  c.heads = kind.heads;
  c.kv_heads = kind.kv_heads;
  c.qk_dim = kind.nope;
  c.rope_dim = kind.rope;
  c.v_dim = kind.v;
  c.kv_dim = kind.kv_dim;
  c.query_dim = traits.q_lora ? 96 : traits.latent || traits.cross ? hidden : kind.kv_dim;
  c.out_dim = 120;
  c.shared_rope_key = traits.latent;
  c.rope.style = kind.interleaved ? bda::RopeStyle::kInterleaved : bda::RopeStyle::kHalfSplit;
  if (kind.rope > 0) c.rope.frequencies = bda::rope_frequencies(kind.rope, 10000.0);
  c.rope.magnitude = 1.125;
  c.scale = 1 / std::sqrt(static_cast<double>(c.head_dim()));
  if (traits.softcap) c.logit_softcap = 2;
  fill_weights(random, traits, hidden, w);
  return w;
}

/// Device memory, NaN where nothing is given.
template <class S>
struct DeviceMemory {
  explicit DeviceMemory(std::size_t bytes) : size(bytes) {
    REQUIRE_CUDA(cudaMalloc(&data, bytes + 1));
    bda_test::set_bytes(data, 0xff, bytes);
  }
  explicit DeviceMemory(const std::vector<S>& values) : DeviceMemory(values.size() * sizeof(S)) {
    REQUIRE_CUDA(cudaMemcpy(data, values.data(), size, cudaMemcpyHostToDevice));
  }
  ~DeviceMemory() { cudaFree(data); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  [[nodiscard]] std::vector<float> values() const {
    std::vector<S> copy(size / sizeof(S));
    REQUIRE_CUDA(cudaMemcpy(copy.data(), data, size, cudaMemcpyDeviceToHost));
    return {copy.begin(), copy.end()};
  }
  void* data = nullptr;
  std::size_t size;
};

template <class S>
std::vector<S> random_values(Random& random, std::int64_t count) {
  return random.vector<S>(count);
}

}  // namespace bda::testing

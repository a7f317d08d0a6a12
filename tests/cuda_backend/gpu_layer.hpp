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
  bool latent = false, q_lora = false, biases = false, head_norms = false, sinks = false;
  bool softcap = false, cross = false, interleaved = true;
  BasisKind k_basis = BasisKind::kNone, v_basis = BasisKind::kNone;
};

inline const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all{
      {.name = "multi-head, biases, scattered bases",
       .biases = true,
       .k_basis = BasisKind::kScattered,
       .v_basis = BasisKind::kScattered},
      {.name = "multi-head, plain, sinks", .biases = true, .sinks = true},
      {.name = "grouped, rotated keys, values decomposed",
       .heads = 8,
       .kv_heads = 2,
       .nope = 0,
       .rope = 32,
       .v = 32,
       .interleaved = false,
       .v_basis = BasisKind::kSlice},
      {.name = "latent, both bases slices",
       .rope = 32,
       .latent = true,
       .k_basis = BasisKind::kSlice,
       .v_basis = BasisKind::kSlice},
      {.name = "latent of DeepSeek's widths, query compressed",
       .heads = 2,
       .kv_heads = 2,
       .nope = 128,
       .rope = 64,
       .v = 128,
       .kv_dim = 512,
       .latent = true,
       .q_lora = true,
       .k_basis = BasisKind::kSlice,
       .v_basis = BasisKind::kSlice},
      {.name = "head norms before the rotation, softcap",
       .heads = 4,
       .kv_heads = 2,
       .nope = 32,
       .rope = 32,
       .head_norms = true,
       .softcap = true,
       .v_basis = BasisKind::kScattered},
      {.name = "cross-attention",
       .cross = true,
       .k_basis = BasisKind::kScattered,
       .v_basis = BasisKind::kSlice},
  };
  return all;
}

template <class T>
AttentionWeights<T> make_layer(Random& random, const Kind& kind) {
  AttentionWeights<T> w;
  bda::AttentionConfig& c = w.config;
  const std::int64_t hidden = 192;
  c.heads = kind.heads;
  c.kv_heads = kind.kv_heads;
  c.qk_dim = kind.nope;
  c.rope_dim = kind.rope;
  c.v_dim = kind.v;
  c.kv_dim = kind.kv_dim;
  c.query_dim = kind.q_lora ? 96 : kind.latent || kind.cross ? hidden : kind.kv_dim;
  c.out_dim = 120;
  c.shared_rope_key = kind.latent;
  c.rope.style = kind.interleaved ? bda::RopeStyle::kInterleaved : bda::RopeStyle::kHalfSplit;
  if (kind.rope > 0) c.rope.frequencies = bda::rope_frequencies(kind.rope, 10000.0);
  c.rope.magnitude = 1.125;
  c.scale = 1 / std::sqrt(static_cast<double>(c.head_dim()));
  if (kind.softcap) c.logit_softcap = 2;
  w.q = random.matrix<T>(c.query_dim, c.heads * c.head_dim());
  w.o = random.matrix<T>(c.heads * c.v_dim, c.out_dim);
  if (kind.biases) {
    w.q_bias = random.vector<T>(c.heads * c.head_dim(), 0, 0.5);
    w.o_bias = random.vector<T>(c.out_dim, 0, 0.5);
  }
  const auto projection = [&](BasisKind basis, std::int64_t in, std::int64_t heads,
                              std::int64_t width) {
    bda::KvProjection<T> p;
    if (width == 0) return p;
    if (basis == BasisKind::kSlice) p.basis = IndexSet::slice(in, 64, width);
    if (basis == BasisKind::kScattered) p.basis = random_basis(random, basis, in, width);
    p.weight = random.matrix<T>(p.basis ? in - width : in, heads * width);
    if (kind.biases) p.bias = random.vector<T>(heads * width, 0, 0.5);
    return p;
  };
  w.k = projection(kind.k_basis, c.kv_dim, c.kv_heads, c.qk_dim);
  w.v = projection(kind.v_basis, c.kv_dim, c.kv_heads, c.v_dim);
  w.k_rope =
      projection(BasisKind::kNone, kind.latent ? hidden : c.kv_dim, c.rope_key_heads(), c.rope_dim);
  if (kind.head_norms) {
    w.q_head_norm = random.vector<T>(c.head_dim(), 1, 0.2);
    w.k_head_norm = random.vector<T>(c.head_dim(), 1, 0.2);
  }
  if (kind.sinks) w.sinks = random.vector<double>(c.heads);
  if (kind.latent) {
    w.latent.emplace();
    w.latent->kv_a = random.matrix<T>(hidden, c.kv_dim);
    w.latent->kv_norm = random.vector<T>(c.kv_dim, 1, 0.2);
    if (kind.q_lora) {
      w.latent->q_a = random.matrix<T>(hidden, c.query_dim);
      w.latent->q_norm = random.vector<T>(c.query_dim, 1, 0.2);
    }
  }
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

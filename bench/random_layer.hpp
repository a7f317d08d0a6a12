#pragma once

#include <cstdint>
#include <random>

#include "bda/linalg/scalar.hpp"
#include "bda/model/attention_weights.hpp"

namespace bench {

/// Normal values of standard deviation 0.02, as transformers are initialised.
template <class T>
bda::Matrix<T> random_matrix(std::mt19937_64& random, std::int64_t rows, std::int64_t cols) {
  std::normal_distribution<float> normal(0, 0.02f);
  bda::Matrix<T> m(rows, cols);
  for (T& value : m.values) value = static_cast<T>(normal(random));
  return m;
}

/// An attention layer of DeepSeek-V2-Lite's shape: D = 2048, n = 16, latent 512, nope 128, rope 64,
/// v 128, no q_lora.
template <class T>
bda::AttentionWeights<T> deepseek_v2_lite_layer(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  bda::AttentionWeights<T> w;
  w.config = {.query_dim = 2048,
              .kv_dim = 512,
              .out_dim = 2048,
              .heads = 16,
              .kv_heads = 16,
              .qk_dim = 128,
              .rope_dim = 64,
              .v_dim = 128,
              .shared_rope_key = true,
              .rope = {.frequencies = bda::rope_frequencies(64, 1e4)},
              .scale = 0.1147};
  w.q = random_matrix<T>(random, 2048, 16 * 192);
  w.k.weight = random_matrix<T>(random, 512, 16 * 128);
  w.k_rope.weight = random_matrix<T>(random, 2048, 64);
  w.v.weight = random_matrix<T>(random, 512, 16 * 128);
  w.o = random_matrix<T>(random, 16 * 128, 2048);
  w.latent.emplace();
  w.latent->kv_a = random_matrix<T>(random, 2048, 512);
  w.latent->kv_norm.assign(512, static_cast<T>(1.0f));
  return w;
}

}  // namespace bench

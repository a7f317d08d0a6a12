#pragma once

#include <bda/model/attention_weights.hpp>

namespace bda_test {

/// A grouped-query layer with every optional tensor but the latent; no two extents are equal.
template <class T = float>
bda::AttentionWeights<T> grouped_layer() {
  bda::AttentionWeights<T> w;
  bda::AttentionConfig& c = w.config;
  c.query_dim = 13;
  c.kv_dim = 11;
  c.out_dim = 9;
  c.heads = 6;
  c.kv_heads = 2;
  c.qk_dim = 5;
  c.rope_dim = 4;
  c.v_dim = 7;
  c.rope.frequencies = bda::rope_frequencies(4, 1e4);
  c.scale = 1.0 / 3;
  w.q = bda::Matrix<T>(13, 6 * 9);
  w.q_bias.resize(6 * 9);
  w.k = {bda::Matrix<T>(11, 2 * 5), std::vector<T>(2 * 5), {}};
  w.k_rope = {bda::Matrix<T>(11, 2 * 4), std::vector<T>(2 * 4), {}};
  w.v = {bda::Matrix<T>(11, 2 * 7), std::vector<T>(2 * 7), {}};
  w.o = bda::Matrix<T>(6 * 7, 9);
  w.o_bias.resize(9);
  w.q_head_norm.resize(9);
  w.k_head_norm.resize(9);
  w.sinks.resize(6);
  return w;
}

/// A latent-attention layer of hidden width 17 with a compressed query.
template <class T = float>
bda::AttentionWeights<T> latent_layer() {
  bda::AttentionWeights<T> w = grouped_layer<T>();
  w.config.heads = w.config.kv_heads = 3;
  w.config.shared_rope_key = true;
  w.q = bda::Matrix<T>(13, 3 * 9);
  w.q_bias.clear();
  w.k = {bda::Matrix<T>(11, 3 * 5), {}, {}};
  w.k_rope = {bda::Matrix<T>(17, 4), {}, {}};
  w.v = {bda::Matrix<T>(11, 3 * 7), {}, {}};
  w.o = bda::Matrix<T>(3 * 7, 9);
  w.q_head_norm.clear();
  w.k_head_norm.clear();
  w.sinks.clear();
  w.latent = {.kv_a = bda::Matrix<T>(17, 11),
              .kv_norm = std::vector<T>(11),
              .q_a = bda::Matrix<T>(17, 13),
              .q_norm = std::vector<T>(13)};
  return w;
}

}  // namespace bda_test

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bda/core/checks.hpp"
#include "bda/model/attention_weights.hpp"

/// Tensor parallelism by heads (Megatron-LM, arXiv 1909.08053, section 3): every rank has all
/// tokens and some of the heads, and the ranks' outputs add up to the layer's.
namespace bda::inline v0 {

/// The heads of one rank.
struct HeadShard {
  std::int64_t first_head = 0, heads = 0;        // query heads [first_head, first_head + heads)
  std::int64_t first_kv_head = 0, kv_heads = 0;  // and the K/V heads they read
};

/// Rank `rank` of `ranks`. Query heads are dealt out evenly, in order. So are K/V heads where
/// `ranks` divides them; where it is a multiple of them instead, each is held by ranks / kv_heads
/// ranks that follow one another, since splitting a head would split its softmax. Throws `Error`
/// for every other number of ranks.
[[nodiscard]] inline HeadShard head_shard(const AttentionConfig& c, std::int64_t rank,
                                          std::int64_t ranks) {
  check::at_least("ranks", ranks, 1);
  check::in_range("rank", rank, 0, ranks - 1);
  if (c.heads % ranks != 0)
    throw Error("ranks", "a divisor of config.heads = " + std::to_string(c.heads),
                std::to_string(ranks));
  if (c.kv_heads % ranks != 0 && ranks % c.kv_heads != 0)
    throw Error("ranks",
                "a divisor or a multiple of config.kv_heads = " + std::to_string(c.kv_heads),
                std::to_string(ranks));
  HeadShard shard;
  shard.heads = c.heads / ranks;
  shard.first_head = rank * shard.heads;
  shard.kv_heads = std::max<std::int64_t>(c.kv_heads / ranks, 1);
  shard.first_kv_head = shard.first_head / c.group_size();
  return shard;
}

namespace detail {

template <class T>
std::vector<T> slice(const std::vector<T>& v, std::int64_t first, std::int64_t count) {
  if (v.empty()) return {};
  return {v.begin() + first, v.begin() + first + count};
}

template <class T>
Matrix<T> slice_columns(const Matrix<T>& m, std::int64_t first, std::int64_t count) {
  Matrix<T> out(m.rows, count);
  for (std::int64_t i = 0; i < m.rows; ++i)
    std::copy_n(m.data() + i * m.cols + first, count, out.data() + i * count);
  return out;
}

template <class T>
KvProjection<T> slice_heads(const KvProjection<T>& p, std::int64_t first, std::int64_t count,
                            std::int64_t width) {
  return {slice_columns(p.weight, first * width, count * width),
          slice(p.bias, first * width, count * width), p.basis};
}

}  // namespace detail

/// The layer of rank `rank` of `ranks`: a layer like any other, plain or decomposed as `weights`
/// are, with the heads of `head_shard`. Over the ranks the outputs sum to that of `weights`, so one
/// all-reduce follows `run`; `o_bias` is with rank 0 alone.
///
/// What is not per head is with every rank: MLA's down-projections and norms, a rotary key that all
/// heads share, head norms, and the basis: S is the same for all heads, which is why a decomposed
/// layer splits like a plain one. A cache of the rank's layer holds the rank's K/V heads; a latent
/// cache is the whole one on every rank. Of `mask.bias` a rank is given the rows of its heads.
///
/// Throws `Error` where `weights` do not fit their config, and as `head_shard` does.
template <class T>
[[nodiscard]] AttentionWeights<T> shard_heads(const AttentionWeights<T>& weights, std::int64_t rank,
                                              std::int64_t ranks) {
  validate(weights);
  const AttentionConfig& c = weights.config;
  const HeadShard s = head_shard(c, rank, ranks);
  AttentionWeights<T> out;
  out.config = c;
  out.config.heads = s.heads;
  out.config.kv_heads = s.kv_heads;
  out.q = detail::slice_columns(weights.q, s.first_head * c.head_dim(), s.heads * c.head_dim());
  out.q_bias = detail::slice(weights.q_bias, s.first_head * c.head_dim(), s.heads * c.head_dim());
  out.k = detail::slice_heads(weights.k, s.first_kv_head, s.kv_heads, c.qk_dim);
  out.k_rope = c.shared_rope_key
                   ? weights.k_rope
                   : detail::slice_heads(weights.k_rope, s.first_kv_head, s.kv_heads, c.rope_dim);
  out.v = detail::slice_heads(weights.v, s.first_kv_head, s.kv_heads, c.v_dim);
  out.o = Matrix<T>(s.heads * c.v_dim, c.out_dim);
  std::copy_n(weights.o.data() + s.first_head * c.v_dim * c.out_dim, out.o.size(), out.o.data());
  if (rank == 0) out.o_bias = weights.o_bias;
  out.q_head_norm = weights.q_head_norm;
  out.k_head_norm = weights.k_head_norm;
  out.head_norm_epsilon = weights.head_norm_epsilon;
  out.sinks = detail::slice(weights.sinks, s.first_head, s.heads);
  out.latent = weights.latent;
  return out;
}

}  // namespace bda::inline v0

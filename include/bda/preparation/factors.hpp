#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/head_factors.hpp"
#include "bda/linalg/eigen.hpp"
#include "bda/model/attention_weights.hpp"

/// The products of a layer, head by head, as factors.
namespace bda::inline v0::detail {

/// Where the key that is to be decomposed lives: the nope part of every head, or, in a forced
/// experiment, the rotated one.
struct KeyPart {
  std::int64_t offset, width;  // in each head's query
  static KeyPart of(const AttentionConfig& c) {
    return c.qk_dim > 0 ? KeyPart{0, c.qk_dim} : KeyPart{0, c.rope_dim};
  }
};

/// One entry a K/V head: left = the Wq of its query heads one below the other,
/// [group * query_dim, width]; right = Wk, [kv_dim, width].
template <class U>
std::vector<HeadFactors<compute_t<U>>> qk_factors(const AttentionWeights<U>& w,
                                                  const Matrix<U>& key, KeyPart part, int threads) {
  const AttentionConfig& c = w.config;
  std::vector<HeadFactors<compute_t<U>>> heads(static_cast<std::size_t>(c.kv_heads));
  for (HeadFactors<compute_t<U>>& head : heads) {
    head.left.resize(c.group_size() * c.query_dim, part.width);
    head.right.resize(key.rows, part.width);
  }
  // By blocks of rows, so that each is read as it lies in memory.
  constexpr std::int64_t kBlock = 64;
  const auto for_row_blocks = [&](std::int64_t rows, const auto& body) {
    parallel_for((rows + kBlock - 1) / kBlock, threads, [&](std::int64_t block) {
      for (std::int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, rows); ++i) body(i);
    });
  };
  for_row_blocks(c.query_dim, [&](std::int64_t i) {
    for (std::int64_t h = 0; h < c.heads; ++h)
      linalg::convert_finite(&w.q(i, h * c.head_dim() + part.offset),
                             &heads[static_cast<std::size_t>(h / c.group_size())].left(
                                 h % c.group_size() * c.query_dim + i, 0),
                             part.width);
  });
  for_row_blocks(key.rows, [&](std::int64_t i) {
    for (std::int64_t g = 0; g < c.kv_heads; ++g)
      linalg::convert_finite(&key(i, g * part.width),
                             &heads[static_cast<std::size_t>(g)].right(i, 0), part.width);
  });
  return heads;
}

/// One entry a K/V head: left = the Woᵀ of its query heads, [group * out_dim, v_dim]; right = Wv,
/// [kv_dim, v_dim].
template <class U>
std::vector<HeadFactors<compute_t<U>>> vo_factors(const AttentionWeights<U>& w, int threads) {
  const AttentionConfig& c = w.config;
  std::vector<HeadFactors<compute_t<U>>> heads(static_cast<std::size_t>(c.kv_heads));
  const auto v = linalg::map(w.v.weight);
  const auto o = linalg::map(w.o);
  parallel_for(c.kv_heads, threads, [&](std::int64_t g) {
    HeadFactors<compute_t<U>>& head = heads[static_cast<std::size_t>(g)];
    head.right.resize(v.rows(), c.v_dim);
    linalg::assign_converted(head.right, v.middleCols(g * c.v_dim, c.v_dim));
    head.left.resize(c.group_size() * c.out_dim, c.v_dim);
    for (std::int64_t j = 0; j < c.group_size(); ++j)
      linalg::assign_transposed(head.left.middleRows(j * c.out_dim, c.out_dim),
                                o.middleRows((g * c.group_size() + j) * c.v_dim, c.v_dim));
  });
  return heads;
}

}  // namespace bda::inline v0::detail

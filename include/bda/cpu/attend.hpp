#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "bda/core/tensor_view.hpp"
#include "bda/cpu/masked_softmax.hpp"
#include "bda/cpu/packing.hpp"
#include "bda/cpu/workers.hpp"
#include "bda/cpu/workspace.hpp"
#include "bda/linalg/eigen.hpp"

/// softmax(q Kᵀ) V over keys and values of every K/V head.
namespace bda::inline v0::cpu {

/// A matrix [rows, cols] in the compute type: the stored one itself where it is in that type, else
/// widened into `memory`.
template <class C, class S>
MatrixView<const C> widened(const MatrixView<const S>& from, C* memory) {
  if constexpr (std::is_same_v<C, S>) {
    return from;
  } else {
    for (std::int64_t i = 0; i < from.extent(0); ++i)
      convert(&from(i, 0), memory + i * from.extent(1), from.extent(1));
    return {memory, {from.extent(0), from.extent(1)}};
  }
}

/// Scratch of one worker, in values of C.
template <class C, class T>
struct AttendScratch {
  AttendScratch(Arena& arena, std::int64_t query_block, std::int64_t keys, std::int64_t head_dim,
                std::int64_t v_dim) {
    scores = arena.take<C>(query_block * keys);
    sums = arena.take<C>(query_block);
    if constexpr (!std::is_same_v<C, T>) {
      wide_keys = arena.take<C>(keys * head_dim);
      wide_values = arena.take<C>(keys * v_dim);
    }
  }
  C *scores, *sums, *wide_keys = nullptr, *wide_values = nullptr;
};

/// The rows [first, first + count) of head `h` of sequence `b` of a [batch, tokens, heads, width]
/// view.
template <class T>
MatrixView<T> head_rows(const TensorView<T, 4>& v, std::int64_t b, std::int64_t h,
                        std::int64_t first, std::int64_t count) {
  return {v.data + b * v.stride(0) + first * v.stride(1) + h * v.stride(2),
          {count, v.extent(3)},
          {v.stride(1), v.stride(3)}};
}

/// out [batch, queries, heads, v_dim] from q [batch, queries, heads, head_dim], k
/// [batch, keys, kv_heads, head_dim] and v [batch, keys, kv_heads, v_dim], a block of queries at a
/// time: scores are never held for more than `query_block` of them in each worker.
/// `sinks` [heads], or null. `scratch(worker)` gives each worker its AttendScratch.
template <class C, class T, class Scratch>
void attend(const TensorView<const C, 4>& q, const TensorView<const T, 4>& k,
            const TensorView<const T, 4>& v, const TensorView<C, 4>& out,
            const ScoreFunction<C>& score, const double* sinks, std::int64_t query_block,
            const Scratch& scratch, int threads) {
  const std::int64_t batch = q.extent(0), queries = q.extent(1), heads = q.extent(2);
  const std::int64_t keys = k.extent(1), kv_heads = k.extent(2), group = heads / kv_heads;
  const std::int64_t blocks = ceil_div(queries, query_block);
  const std::int64_t work = batch * heads * queries * keys * (k.extent(3) + v.extent(3));
  parallel_for_workers(
      batch * kv_heads * blocks, worthwhile_threads(work, threads),
      [&](std::int64_t worker, std::int64_t item) {
        const std::int64_t b = item / (kv_heads * blocks), g = item / blocks % kv_heads;
        const std::int64_t query = item % blocks * query_block;
        const std::int64_t count = std::min(query_block, queries - query);
        const KeyRange range =
            visible_keys(score.mask, b, score.first_position, query, count, keys);
        const AttendScratch<C, T> memory = scratch(worker);
        const auto wide_k =
            widened<C>(head_rows(k, b, g, range.first, range.size()), memory.wide_keys);
        const auto wide_v =
            widened<C>(head_rows(v, b, g, range.first, range.size()), memory.wide_values);
        for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
          const MatrixView<C> weights(memory.scores, {count, range.size()});
          auto result = linalg::map(head_rows(out, b, h, query, count));
          if (range.size() == 0) {
            result.setZero();
            continue;
          }
          linalg::map(weights).noalias() =
              linalg::map(head_rows(q, b, h, query, count)) * linalg::map(wide_k).transpose();
          ScoreFunction<C> f = score;
          f.has_sink = sinks != nullptr;
          f.sink = f.has_sink ? static_cast<C>(sinks[h]) : C(0);
          masked_exponentials(f, b, h, query, count, range, weights, memory.sums);
          result.noalias() = linalg::map(weights) * linalg::map(wide_v);
          for (std::int64_t i = 0; i < count; ++i) result.row(i) /= memory.sums[i];
        }
      });
}

}  // namespace bda::inline v0::cpu

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "bda/attention/arguments.hpp"
#include "bda/core/dtype.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cpu/attend_absorbed.hpp"
#include "bda/cpu/elementwise.hpp"
#include "bda/cpu/kv_cache.hpp"
#include "bda/cpu/projection.hpp"
#include "bda/cpu/workspace.hpp"
#include "bda/model/attention_weights.hpp"

/// Where one run of a layer keeps its intermediate results in the caller's workspace.
namespace bda::inline v0::cpu {

/// to = from, element by element, converted (to a 16-bit type: rounded to nearest even).
template <class A, class B>
void copy(const TensorView<A, 4>& from, const TensorView<B, 4>& to) {
  if (to.empty()) return;
  for (std::int64_t b = 0; b < to.extent(0); ++b)
    for (std::int64_t h = 0; h < to.extent(2); ++h)
      for (std::int64_t t = 0; t < to.extent(1); ++t)
        convert(&from(b, t, h, 0), &to(b, t, h, 0), to.extent(3));
}

/// The token counts of one run, and which way it goes.
struct RunShape {
  std::int64_t batch, queries;
  std::int64_t fresh, past, keys;  // keys = past (in the cache) + fresh
  std::int64_t first_query_position;
  bool cross, cached, latent_cache, absorbed;

  template <class C, class Cache>
  RunShape(const AttentionArguments<C>& args, const Cache* cache)
      : batch(args.x.extent(0)),
        queries(args.x.extent(1)),
        fresh(args.key_source().extent(1)),
        past(cache != nullptr ? cache->length() : 0),
        keys(past + fresh),
        first_query_position(args.is_cross_attention() ? 0 : past),
        cross(args.is_cross_attention()),
        cached(cache != nullptr),
        latent_cache(cached && is_latent(*cache)),
        absorbed(args.latent_products == LatentProducts::kAbsorbed) {}

 private:
  template <class T>
  static bool is_latent(const KvCache<T>& cache) {
    return cache.form() == CacheForm::kLatent;
  }
  /// A cache that came with the attention step.
  template <class Other>
  static bool is_latent(const Other&) {
    return false;
  }
};

/// The buffers of one run. Views of what the run does not need are null.
template <Storage S, class CacheScalar>
struct RunBuffers {
  using C = compute_t<S>;

  /// `step_bytes` is what the attention step needs, where it is not absorbed; with `step_cache` it
  /// stores keys and values itself.
  RunBuffers(const AttentionWeights<S>& weights, const RunShape& run, int threads,
             std::int64_t query_block, std::size_t step_bytes, bool step_cache, Arena& arena)
      : shape(run), config_(weights.config), query_block_(std::min(query_block, run.queries)) {
    const AttentionConfig& c = weights.config;
    const std::int64_t batch = run.batch;
    q = heads_view(arena, run.queries, c.heads, c.head_dim());
    mixed = {arena.take<C>(batch * run.queries * c.heads * c.v_dim),
             {batch, run.queries, c.heads, c.v_dim}};
    if (weights.latent) {
      latent = {arena.take<C>(batch * run.fresh * c.kv_dim), {batch, run.fresh, c.kv_dim}};
      if (!weights.latent->q_a.empty()) {
        query_latent = {arena.take<C>(batch * run.queries * c.query_dim),
                        {batch, run.queries, c.query_dim}};
        has_query_latent = true;
      }
    }
    if (c.rope_dim > 0) {
      rope_key = heads_view(arena, run.fresh, c.rope_key_heads(), c.rope_dim);
      key_rotary = rotary(arena, run.fresh);
      query_rotary = run.cross ? rotary(arena, run.queries) : key_rotary;
    }
    constexpr bool kCacheIsWide = std::is_same_v<C, CacheScalar>;
    if (run.latent_cache && !kCacheIsWide) {
      wide_latent = heads_view(arena, run.keys, 1, c.kv_dim);
      wide_rope_key = heads_view(arena, run.keys, c.rope_key_heads(), c.rope_dim);
    }
    const bool in_cache = run.cached && !run.latent_cache;
    // tokens whose keys and values are formed here
    const std::int64_t formed = run.absorbed                  ? 0
                                : !in_cache                   ? run.keys
                                : kCacheIsWide && !step_cache ? 0
                                                              : run.fresh;
    k = heads_view(arena, formed, c.kv_heads, c.head_dim());
    v = heads_view(arena, formed, c.kv_heads, c.v_dim);

    // The products and the attention proper follow one another: they share their scratch.
    std::size_t bytes = step_bytes;
    if (run.absorbed) {
      Arena attention;
      AbsorbedScratch<C, S>(attention, query_block_, run.keys, c.kv_dim,
                            std::max(c.qk_dim, c.v_dim));
      worker_bytes_ = attention.required();
      bytes = worker_bytes_ * static_cast<std::size_t>(threads);
    }
    const auto product = [&](std::int64_t rows, const Matrix<S>& w) {
      Arena measured;
      take_product_scratch<C>(measured, rows, w.rows, w.cols, threads);
      bytes = std::max(bytes, measured.required());
    };
    const auto projection = [&](std::int64_t rows, const KvProjection<S>& p) {
      Arena measured;
      take_projection_scratch<C>(measured, p, rows, threads);
      bytes = std::max(bytes, measured.required());
    };
    product(batch * run.queries, weights.q);
    product(batch * run.queries, weights.o);
    if (weights.latent) {
      product(batch * run.queries, weights.latent->q_a);
      product(batch * run.fresh, weights.latent->kv_a);
    }
    projection(batch * run.fresh, weights.k_rope);
    if (!run.absorbed) {
      const std::int64_t rows = batch * (in_cache ? run.fresh : run.keys);
      projection(rows, weights.k);
      projection(rows, weights.v);
    }
    scratch_ = {arena.take<std::byte>(static_cast<std::int64_t>(bytes)), bytes};
  }

  void fill_rotary_tables(const RopeConfig& rope) const {
    if (key_rotary.planes == 0) return;
    auto table = key_rotary;
    table.fill(rope, shape.past, shape.fresh);
    if (!shape.cross) return;
    table = query_rotary;
    table.fill(rope, shape.first_query_position, shape.queries);
  }

  /// [batch, queries, heads * v_dim]
  [[nodiscard]] TensorView<C, 3> mixed_rows() const {
    return {mixed.data, {mixed.extent(0), mixed.extent(1), mixed.extent(2) * mixed.extent(3)}};
  }
  [[nodiscard]] C* product_scratch() const { return reinterpret_cast<C*>(scratch_.data()); }
  /// Of at least `step_bytes`.
  [[nodiscard]] std::span<std::byte> step_scratch() const { return scratch_; }
  [[nodiscard]] AbsorbedScratch<C, S> absorbed_scratch(std::int64_t worker) const {
    Arena arena(worker_memory(worker));
    return {arena, query_block_, shape.keys, config_.kv_dim,
            std::max(config_.qk_dim, config_.v_dim)};
  }

  /// A [batch, tokens, width] view as one of one head, and back.
  template <class T>
  static TensorView<T, 4> with_head(const TensorView<T, 3>& v) {
    return {v.data,
            {v.extent(0), v.extent(1), 1, v.extent(2)},
            {v.stride(0), v.stride(1), v.extent(2), v.stride(2)}};
  }
  template <class T>
  static TensorView<T, 3> without_head(const TensorView<T, 4>& v) {
    return {
        v.data, {v.extent(0), v.extent(1), v.extent(3)}, {v.stride(0), v.stride(1), v.stride(3)}};
  }

  RunShape shape;
  bool has_query_latent = false;
  TensorView<C, 4> q;                           // [batch, queries, heads, qk_dim + rope_dim]
  TensorView<C, 4> mixed;                       // [batch, queries, heads, v_dim]: softmax(.) V
  TensorView<C, 3> latent;                      // [batch, fresh, kv_dim]: MLA's c
  TensorView<C, 3> query_latent;                // [batch, queries, query_dim]
  TensorView<C, 4> rope_key;                    // [batch, fresh, rope_key_heads, rope_dim]
  TensorView<C, 4> k, v;                        // [batch, formed, kv_heads, *]
  TensorView<C, 4> wide_latent, wide_rope_key;  // a 16-bit latent cache, widened
  RotaryTable<C> key_rotary, query_rotary;

 private:
  /// A [batch, tokens, heads, width] view whose memory is [batch, heads, tokens, width]: a head's
  /// rows lie together.
  TensorView<C, 4> heads_view(Arena& arena, std::int64_t tokens, std::int64_t heads,
                              std::int64_t width) const {
    return {arena.take<C>(shape.batch * tokens * heads * width),
            {shape.batch, tokens, heads, width},
            {heads * tokens * width, width, tokens * width, 1}};
  }
  RotaryTable<C> rotary(Arena& arena, std::int64_t positions) const {
    const std::int64_t planes = config_.rope_dim / 2;
    RotaryTable<C> table;
    table.planes = planes;
    table.cos = arena.take<C>(positions * planes);
    table.sin = arena.take<C>(positions * planes);
    return table;
  }
  [[nodiscard]] std::span<std::byte> worker_memory(std::int64_t worker) const {
    return scratch_.subspan(static_cast<std::size_t>(worker) * worker_bytes_, worker_bytes_);
  }

  const AttentionConfig& config_;
  std::int64_t query_block_;
  std::size_t worker_bytes_ = 0;
  std::span<std::byte> scratch_;
};

}  // namespace bda::inline v0::cpu

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "bda/core/tensor_view.hpp"
#include "bda/cpu/attend.hpp"
#include "bda/cpu/masked_softmax.hpp"
#include "bda/cpu/projection.hpp"
#include "bda/cpu/workers.hpp"
#include "bda/cpu/workspace.hpp"
#include "bda/linalg/eigen.hpp"
#include "bda/model/attention_weights.hpp"

/// MLA with queries and outputs moved into latent space (DeepSeek-V2, section 2.1; for decomposed
/// weights with [I, Cᵀ]P in place of Wᵀ): the cache is one latent per token, whatever the heads.
namespace bda::inline v0::cpu {

/// One side's projection with its plan.
template <class C, class S>
struct AbsorbedProjection {
  const KvProjection<S>& weights;
  const ProjectionPlan<C>& plan;
  std::int64_t heads, width;

  /// W_h, or the coefficients C_h: [rows, width].
  [[nodiscard]] MatrixView<const C> matrix(std::int64_t h, C* memory) const {
    const Matrix<S>& w = weights.weight;
    return widened<C>(MatrixView<const S>{w.data() + h * width, {w.rows, width}, {w.cols, 1}},
                      memory);
  }
  [[nodiscard]] const C* bias(std::int64_t h) const {
    return plan.bias.empty() ? nullptr : plan.bias.data() + h * width;
  }

  /// latent [count, d] = q [count, width] W_hᵀ; with a basis S the entries at S are q itself.
  /// `part` holds [count, d - width].
  void absorb(MatrixView<const C> q, std::int64_t h, MatrixView<C> latent, C* memory,
              C* part) const {
    const auto w = linalg::map(matrix(h, memory));
    if (!weights.basis) {
      linalg::map(latent).noalias() = linalg::map(q) * w.transpose();
      return;
    }
    const std::int64_t rest = w.rows();
    Eigen::Map<linalg::RowMatrix<C>> product(part, q.extent(0), rest);
    if (rest > 0) product.noalias() = linalg::map(q) * w.transpose();
    for (std::int64_t i = 0; i < q.extent(0); ++i) {
      for (std::int64_t j = 0; j < width; ++j) latent(i, (*weights.basis)[j]) = q(i, j);
      for (std::int64_t j = 0; j < rest; ++j)
        latent(i, plan.rest[static_cast<std::size_t>(j)]) = product(i, j);
    }
  }

  /// out [count, width] = latent [count, d] W_h, or latent_S + latent_rest C_h.
  void expand(MatrixView<const C> latent, std::int64_t h, MatrixView<C> out, C* memory,
              C* part) const {
    const auto w = linalg::map(matrix(h, memory));
    auto result = linalg::map(out);
    if (!weights.basis) {
      result.noalias() = linalg::map(latent) * w;
      return;
    }
    const std::int64_t rest = w.rows();
    Eigen::Map<linalg::RowMatrix<C>> gathered(part, latent.extent(0), rest);
    for (std::int64_t i = 0; i < latent.extent(0); ++i) {
      for (std::int64_t j = 0; j < rest; ++j)
        gathered(i, j) = latent(i, plan.rest[static_cast<std::size_t>(j)]);
      for (std::int64_t j = 0; j < width; ++j) out(i, j) = latent(i, (*weights.basis)[j]);
    }
    if (rest > 0) result.noalias() += gathered * w;
  }
};

/// Scratch of one worker, in values of C.
template <class C, class S>
struct AbsorbedScratch {
  AbsorbedScratch(Arena& arena, std::int64_t query_block, std::int64_t keys,
                  std::int64_t latent_dim, std::int64_t widest_head) {
    scores = arena.take<C>(query_block * keys);
    sums = arena.take<C>(query_block);
    latent = arena.take<C>(query_block * latent_dim);
    part = arena.take<C>(query_block * latent_dim);
    if constexpr (!std::is_same_v<C, S>) matrix = arena.take<C>(latent_dim * widest_head);
  }
  C *scores, *sums, *latent, *part, *matrix = nullptr;
};

/// out [batch, queries, heads, v_dim] from q [batch, queries, heads, qk_dim + rope_dim], latents
/// [batch, keys, 1, d] and rotated rope keys [batch, keys, rope heads, rope_dim].
template <class C, class S, class Scratch>
void attend_absorbed(const TensorView<const C, 4>& q, const TensorView<const C, 4>& latents,
                     const TensorView<const C, 4>& rope_keys, const AbsorbedProjection<C, S>& key,
                     const AbsorbedProjection<C, S>& value, const TensorView<C, 4>& out,
                     const ScoreFunction<C>& score, const double* sinks, std::int64_t query_block,
                     const Scratch& scratch, int threads) {
  const std::int64_t batch = q.extent(0), queries = q.extent(1), heads = q.extent(2);
  const std::int64_t keys = latents.extent(1), d = latents.extent(3);
  const std::int64_t qk_dim = key.width, rope_dim = rope_keys.extent(3);
  const std::int64_t group = heads / key.heads, blocks = ceil_div(queries, query_block);
  const std::int64_t work = batch * heads * queries * d * (2 * keys + qk_dim + value.width);
  parallel_for_workers(
      batch * heads * blocks, worthwhile_threads(work, threads),
      [&](std::int64_t worker, std::int64_t item) {
        const std::int64_t b = item / (heads * blocks), h = item / blocks % heads, g = h / group;
        const std::int64_t query = item % blocks * query_block;
        const std::int64_t count = std::min(query_block, queries - query);
        const KeyRange range =
            visible_keys(score.mask, b, score.first_position, query, count, keys);
        auto result = head_rows(out, b, h, query, count);
        if (range.size() == 0) {
          linalg::map(result).setZero();
          return;
        }
        const AbsorbedScratch<C, S> memory = scratch(worker);
        const auto rows = head_rows(q, b, h, query, count);
        const MatrixView<const C> nope(rows.data, {count, qk_dim}, {rows.stride(0), 1});
        const MatrixView<const C> rotated(rows.data + qk_dim, {count, rope_dim},
                                          {rows.stride(0), 1});
        const auto c = linalg::map(head_rows(latents, b, 0, range.first, range.size()));
        const MatrixView<C> weights(memory.scores, {count, range.size()});
        const MatrixView<C> latent(memory.latent, {count, d});
        auto scores = linalg::map(weights);

        if (qk_dim > 0) {
          key.absorb(nope, g, latent, memory.matrix, memory.part);
          scores.noalias() = linalg::map(latent) * c.transpose();
        } else {
          scores.setZero();
        }
        if (rope_dim > 0) {
          const std::int64_t rope_head = rope_keys.extent(2) == 1 ? 0 : g;
          scores.noalias() +=
              linalg::map(rotated) *
              linalg::map(head_rows(rope_keys, b, rope_head, range.first, range.size()))
                  .transpose();
        }
        if (const C* bias = key.bias(g); bias != nullptr) {  // the same for every key of a query
          const Eigen::Map<const Eigen::Matrix<C, Eigen::Dynamic, 1>> constant(bias, qk_dim);
          for (std::int64_t i = 0; i < count; ++i)
            scores.row(i).array() += linalg::map(nope).row(i).dot(constant);
        }

        ScoreFunction<C> f = score;
        f.has_sink = sinks != nullptr;
        f.sink = f.has_sink ? static_cast<C>(sinks[h]) : C(0);
        masked_exponentials(f, b, h, query, count, range, weights, memory.sums);
        auto mixed = linalg::map(latent);
        mixed.noalias() = scores * c;
        for (std::int64_t i = 0; i < count; ++i) mixed.row(i) /= memory.sums[i];
        value.expand(latent, g, result, memory.matrix, memory.part);
        if (const C* bias = value.bias(g); bias != nullptr) {
          // weighted by the sum of the row: a sink makes it less than 1, no visible key 0
          for (std::int64_t i = 0; i < count; ++i) {
            const C share = scores.row(i).sum() / memory.sums[i];
            for (std::int64_t j = 0; j < value.width; ++j) result(i, j) += share * bias[j];
          }
        }
      });
}

}  // namespace bda::inline v0::cpu

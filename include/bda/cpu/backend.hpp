#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "bda/attention/arguments.hpp"
#include "bda/attention/step_cache.hpp"
#include "bda/core/dtype.hpp"
#include "bda/core/error.hpp"
#include "bda/core/status.hpp"
#include "bda/cpu/attend_absorbed.hpp"
#include "bda/cpu/attend_step.hpp"
#include "bda/cpu/elementwise.hpp"
#include "bda/cpu/kv_cache.hpp"
#include "bda/cpu/projection.hpp"
#include "bda/cpu/run_buffers.hpp"
#include "bda/linalg/scalar.hpp"
#include "bda/model/attention_weights.hpp"

namespace bda::inline v0 {

struct CpuOptions {
  int threads = 1;  // results do not depend on it
  /// Queries whose scores are held at once in each thread; bounds the workspace.
  std::int64_t query_block = 64;
};

/// Attention on the CPU: `BDAttention<CpuBackend<float>>`.
///
/// S is the type weights are stored in: double, float, Eigen::half or Eigen::bfloat16. Products and
/// sums are in compute_t<S>, to which weights are widened as they are read. CacheScalar is what a
/// K/V cache stores. Nothing here allocates while it runs but Eigen's own packing buffers (scores
/// and weighted sums) and the threads asked for.
///
/// Attend is the attention step, in the form of cpu::BuiltInAttend. One that names a type `Cache`
/// brings its own cache: then `make_cache` is not there, and absorbed products are refused.
template <Storage S, class CacheScalar = compute_t<S>, class Attend = cpu::BuiltInAttend>
class CpuBackend {
 public:
  using Weights = AttentionWeights<S>;
  using Compute = compute_t<S>;
  using Options = CpuOptions;
  struct Stream {};  // the caller's thread
  using Cache = typename CacheOfStep<Attend, KvCache<CacheScalar>>::type;
  using Arguments = AttentionArguments<Compute>;

  /// `weights` have passed `validate`.
  CpuBackend(Weights weights, Options options) : weights_(std::move(weights)), options_(options) {
    check::at_least("options.threads", options_.threads, 1);
    check::at_least("options.query_block", options_.query_block, 1);
    k_ = cpu::ProjectionPlan<Compute>(weights_.k);
    k_rope_ = cpu::ProjectionPlan<Compute>(weights_.k_rope);
    v_ = cpu::ProjectionPlan<Compute>(weights_.v);
    q_bias_ = widen(weights_.q_bias);
    o_bias_ = widen(weights_.o_bias);
    q_head_norm_ = widen(weights_.q_head_norm);
    k_head_norm_ = widen(weights_.k_head_norm);
    if (weights_.latent) {
      kv_norm_ = widen(weights_.latent->kv_norm);
      q_norm_ = widen(weights_.latent->q_norm);
    }
  }

  [[nodiscard]] const Weights& weights() const { return weights_; }
  [[nodiscard]] const Options& options() const { return options_; }

  [[nodiscard]] Cache make_cache(std::int64_t batch, std::int64_t capacity, CacheForm form) const
      requires(!BringsCache<Attend>) {
    if (form == CacheForm::kLatent && !weights_.latent)
      throw Error("cache.form", "kMaterialized, as the layer has no latent", "kLatent");
    if (form == CacheForm::kLatent && !weights_.k_head_norm.empty())
      throw Error("cache.form", "kMaterialized, as k_head_norm needs the keys", "kLatent");
    return Cache(weights_.config, layer_id(), batch, capacity, form);
  }

  /// Whether `cache` can take the tokens of `args`.
  Status check(const Arguments& args, const Cache& cache) const {
    if constexpr (!kStepCache)
      if (cache.layer() != layer_id()) return Status::invalid("cache", "made by this layer", 1, 0);
    if (cache.batch() != args.x.extent(0))
      return Status::invalid("cache.batch", "equal to x.extent(0)", args.x.extent(0),
                             cache.batch());
    const std::int64_t needed = cache.length() + args.key_source().extent(1);
    if (needed > cache.capacity())
      return Status::invalid("cache.capacity", "at least the tokens held and the new ones", needed,
                             cache.capacity());
    bool latent = false;
    if constexpr (!kStepCache) latent = cache.form() == CacheForm::kLatent;
    if (args.latent_products == LatentProducts::kAbsorbed && !latent)
      return Status::error(Status::Code::kUnsupported, "latent_products",
                           "kMaterialized, as the cache is not latent",
                           static_cast<int>(LatentProducts::kMaterialized),
                           static_cast<int>(args.latent_products));
    return {};
  }

  [[nodiscard]] std::size_t workspace_size(const Arguments& args) const {
    return measure(args, nullptr);
  }
  [[nodiscard]] std::size_t workspace_size(const Arguments& args, const Cache& cache) const {
    return measure(args, &cache);
  }

  /// `args` and `cache` have passed their checks; what is left to check is the workspace.
  Status run(const Arguments& args, std::span<std::byte> workspace, Stream) const {
    return run(args, static_cast<Cache*>(nullptr), workspace);
  }
  Status run(const Arguments& args, Cache& cache, std::span<std::byte> workspace, Stream) const {
    return run(args, &cache, workspace);
  }

 private:
  using Buffers = cpu::RunBuffers<S, CacheScalar>;
  static constexpr bool kCacheIsWide = std::is_same_v<Compute, CacheScalar>;
  static constexpr bool kStepCache = BringsCache<Attend>;

  static std::vector<Compute> widen(const std::vector<S>& from) {
    std::vector<Compute> to(from.size());
    cpu::convert(from.data(), to.data(), static_cast<std::int64_t>(from.size()));
    return to;
  }

  /// An address that stays with the weights when the layer is moved.
  [[nodiscard]] const void* layer_id() const { return weights_.o.data(); }

  Buffers make_buffers(const Arguments& args, const Cache* cache, cpu::Arena& arena) const {
    const cpu::RunShape shape(args, cache);
    return Buffers(weights_, shape, options_.threads, options_.query_block,
                   step_bytes(args, shape, cache), kStepCache, arena);
  }
  std::size_t measure(const Arguments& args, const Cache* cache) const {
    cpu::Arena arena;
    static_cast<void>(make_buffers(args, cache, arena));
    return arena.required();
  }

  Status run(const Arguments& args, Cache* cache, std::span<std::byte> workspace) const {
    const std::size_t needed = measure(args, cache);
    if (workspace.data() == nullptr || workspace.size() < needed)
      return Status::error(Status::Code::kWorkspaceTooSmall, "workspace.size",
                           "at least workspace_size(args)", static_cast<std::int64_t>(needed),
                           static_cast<std::int64_t>(workspace.size()));
    cpu::Arena arena(workspace);
    const Buffers buffers = make_buffers(args, cache, arena);
    make_queries(args, buffers);
    make_latents(args, buffers, cache);
    if (buffers.shape.absorbed)
      attend_to_latents(args, buffers, cache);
    else if (Status s = attend_to_keys(args, buffers, cache); !s)
      return s;
    linear(weights_.o, o_bias_, TensorView<const Compute, 3>(buffers.mixed_rows()), args.out,
           buffers);
    if (cache != nullptr) cache->set_length(buffers.shape.keys);
    return {};
  }

  /// out = a w + bias, on [batch, tokens, *].
  void linear(const Matrix<S>& w, const std::vector<Compute>& bias,
              const TensorView<const Compute, 3>& a, const TensorView<Compute, 3>& out,
              const Buffers& buffers) const {
    linear(w, bias, a,
           TensorView<Compute, 4>(out.data, {out.extent(0), out.extent(1), 1, out.extent(2)},
                                  {out.stride(0), out.stride(1), out.extent(2), 1}),
           buffers);
  }
  /// The same with the columns split into heads.
  void linear(const Matrix<S>& w, const std::vector<Compute>& bias,
              const TensorView<const Compute, 3>& a, const TensorView<Compute, 4>& out,
              const Buffers& buffers) const {
    cpu::Product<Compute, S> product;
    product.a = a;
    product.w = {w.data(), {w.rows, w.cols}};
    product.bias = bias.empty() ? nullptr : bias.data();
    product.out = out;
    cpu::multiply(product, buffers.product_scratch(), options_.threads);
  }

  static void normalize(const TensorView<Compute, 3>& rows, const std::vector<Compute>& gain,
                        double epsilon) {
    cpu::RowCursor<Compute> row(rows, 0);
    for (std::int64_t i = 0; i < rows.extent(0) * rows.extent(1); ++i, row.next())
      cpu::rms_norm(row.data(), gain, epsilon);
  }

  /// Norm (where there is one), then rotation, of every head's query or key [nope | rope].
  void finish_heads(const TensorView<Compute, 4>& heads, const std::vector<Compute>& gain,
                    const cpu::RotaryTable<Compute>& table) const {
    const AttentionConfig& c = weights_.config;
    if (gain.empty() && c.rope_dim == 0) return;
    for (std::int64_t b = 0; b < heads.extent(0); ++b)
      for (std::int64_t h = 0; h < heads.extent(2); ++h)
        for (std::int64_t t = 0; t < heads.extent(1); ++t) {
          Compute* row = &heads(b, t, h, 0);
          if (!gain.empty()) cpu::rms_norm(row, gain, weights_.head_norm_epsilon);
          table.rotate(row + heads.extent(3) - c.rope_dim, t, c.rope.style);
        }
  }

  /// buffers.q: the rotated queries.
  void make_queries(const Arguments& args, const Buffers& buffers) const {
    TensorView<const Compute, 3> from = args.x;
    if (buffers.has_query_latent) {
      linear(weights_.latent->q_a, {}, from, buffers.query_latent, buffers);
      normalize(buffers.query_latent, q_norm_, weights_.latent->norm_epsilon);
      from = buffers.query_latent;
    }
    linear(weights_.q, q_bias_, from, buffers.q, buffers);
    buffers.fill_rotary_tables(weights_.config.rope);
    finish_heads(buffers.q, q_head_norm_, buffers.query_rotary);
  }

  /// The new tokens' latents (MLA) and rope keys, and the latent cache's copy of them.
  void make_latents(const Arguments& args, const Buffers& buffers, Cache* cache) const {
    const cpu::RunShape& shape = buffers.shape;
    if (shape.fresh == 0) return;
    const AttentionConfig& c = weights_.config;
    if (weights_.latent) {
      linear(weights_.latent->kv_a, {}, args.key_source(), buffers.latent, buffers);
      normalize(buffers.latent, kv_norm_, weights_.latent->norm_epsilon);
    }
    if (c.rope_dim > 0) {
      cpu::project(weights_.k_rope, k_rope_, args.key_source(), buffers.rope_key,
                   buffers.product_scratch(), options_.threads);
      // a norm of the whole head comes first, once the keys are formed
      if (k_head_norm_.empty()) finish_heads(buffers.rope_key, {}, buffers.key_rotary);
    }
    if constexpr (!kStepCache) {
      if (!shape.latent_cache) return;
      cpu::copy(Buffers::with_head(buffers.latent), cache->keys(shape.past, shape.fresh));
      cpu::copy(buffers.rope_key, cache->values(shape.past, shape.fresh));
    }
  }

  /// The latents [batch, keys, 1, kv_dim] and rope keys [batch, keys, heads, rope_dim] of every
  /// token.
  std::pair<TensorView<const Compute, 4>, TensorView<const Compute, 4>> all_latents(
      const Buffers& buffers, Cache* cache) const {
    if constexpr (!kStepCache)
      if (buffers.shape.latent_cache) return cached_latents(buffers, cache);
    return {Buffers::with_head(buffers.latent), buffers.rope_key};
  }
  std::pair<TensorView<const Compute, 4>, TensorView<const Compute, 4>> cached_latents(
      const Buffers& buffers, Cache* cache) const {
    const auto latents = cache->keys(0, buffers.shape.keys);
    const auto rope_keys = cache->values(0, buffers.shape.keys);
    if constexpr (kCacheIsWide) {
      return {latents, rope_keys};
    } else {
      cpu::copy(latents, buffers.wide_latent);
      cpu::copy(rope_keys, buffers.wide_rope_key);
      return {buffers.wide_latent, buffers.wide_rope_key};
    }
  }

  [[nodiscard]] cpu::ScoreFunction<Compute> score_function(const Arguments& args,
                                                           const cpu::RunShape& shape) const {
    cpu::ScoreFunction<Compute> f;
    f.scale = static_cast<Compute>(weights_.config.scale);
    f.softcap = static_cast<Compute>(weights_.config.logit_softcap);
    f.mask = args.mask;
    f.first_position = shape.first_query_position;
    return f;
  }
  [[nodiscard]] const double* sinks() const {
    return weights_.sinks.empty() ? nullptr : weights_.sinks.data();
  }

  void attend_to_latents(const Arguments& args, const Buffers& buffers, Cache* cache) const {
    const AttentionConfig& c = weights_.config;
    const auto [latents, rope_keys] = all_latents(buffers, cache);
    cpu::attend_absorbed<Compute, S>(
        buffers.q, latents, rope_keys, {weights_.k, k_, c.kv_heads, c.qk_dim},
        {weights_.v, v_, c.kv_heads, c.v_dim}, buffers.mixed, score_function(args, buffers.shape),
        sinks(), options_.query_block,
        [&](std::int64_t worker) { return buffers.absorbed_scratch(worker); }, options_.threads);
  }

  /// k [batch, tokens, kv_heads, qk_dim + rope_dim] and v [batch, tokens, kv_heads, v_dim] of the
  /// tokens whose c and rope keys are given.
  void form_keys_and_values(const TensorView<const Compute, 3>& source,
                            const TensorView<const Compute, 4>& rope_key,
                            const TensorView<Compute, 4>& k, const TensorView<Compute, 4>& v,
                            const Buffers& buffers) const {
    const AttentionConfig& c = weights_.config;
    if (c.qk_dim > 0) {
      TensorView<Compute, 4> nope = k;
      nope.extents[3] = c.qk_dim;
      cpu::project(weights_.k, k_, source, nope, buffers.product_scratch(), options_.threads);
    }
    if (c.rope_dim > 0) {
      TensorView<Compute, 4> rope = k;
      rope.data += c.qk_dim;
      rope.extents[3] = c.rope_dim;
      TensorView<const Compute, 4> from = rope_key;
      if (c.shared_rope_key) from.extents[2] = c.kv_heads, from.strides[2] = 0;
      cpu::copy(from, rope);
    }
    if (!k_head_norm_.empty()) finish_heads(k, k_head_norm_, buffers.key_rotary);
    cpu::project(weights_.v, v_, source, v, buffers.product_scratch(), options_.threads);
  }

  /// What the attention step gets, but for the data.
  template <class T>
  cpu::AttendArguments<Compute, T> step_arguments(const Arguments& args, const cpu::RunShape& shape,
                                                  std::int64_t keys) const {
    const AttentionConfig& c = weights_.config;
    cpu::AttendArguments<Compute, T> step;
    step.q.extents = {shape.batch, shape.queries, c.heads, c.head_dim()};
    step.k.extents = {shape.batch, keys, c.kv_heads, c.head_dim()};
    step.v.extents = {shape.batch, keys, c.kv_heads, c.v_dim};
    step.out.extents = {shape.batch, shape.queries, c.heads, c.v_dim};
    step.score = score_function(args, shape);
    step.sinks = sinks();
    step.query_block = options_.query_block;
    step.threads = options_.threads;
    return step;
  }
  std::size_t step_bytes(const Arguments& args, const cpu::RunShape& shape,
                         const Cache* cache) const {
    if (shape.absorbed) return 0;
    if constexpr (kStepCache)
      return Attend::workspace_size(step_arguments<Compute>(args, shape, shape.fresh), cache);
    else if (shape.cached && !shape.latent_cache)
      return Attend::workspace_size(step_arguments<CacheScalar>(args, shape, shape.keys));
    else
      return Attend::workspace_size(step_arguments<Compute>(args, shape, shape.keys));
  }

  template <class T>
  cpu::AttendArguments<Compute, T> step_arguments(const Arguments& args, const Buffers& buffers,
                                                  const TensorView<const T, 4>& k,
                                                  const TensorView<const T, 4>& v) const {
    auto step = step_arguments<T>(args, buffers.shape, k.extent(1));
    step.q = buffers.q, step.k = k, step.v = v, step.out = buffers.mixed;
    return step;
  }
  template <class T>
  Status attend(const Arguments& args, const TensorView<const T, 4>& k,
                const TensorView<const T, 4>& v, const Buffers& buffers) const {
    return Attend::run(step_arguments(args, buffers, k, v), buffers.step_scratch());
  }

  Status attend_to_keys(const Arguments& args, const Buffers& buffers, Cache* cache) const {
    const cpu::RunShape& shape = buffers.shape;
    if constexpr (!kStepCache)
      if (cache != nullptr && !shape.latent_cache) return attend_to_cache(args, buffers, cache);
    if (weights_.latent && buffers.k.extent(1) > 0) {
      const auto [latents, rope_keys] = all_latents(buffers, cache);
      form_keys_and_values(Buffers::without_head(latents), rope_keys, buffers.k, buffers.v,
                           buffers);
    } else if (buffers.k.extent(1) > 0) {
      form_keys_and_values(args.key_source(), buffers.rope_key, buffers.k, buffers.v, buffers);
    }
    if constexpr (kStepCache)
      return Attend::run(step_arguments<Compute>(args, buffers, buffers.k, buffers.v), cache,
                         buffers.step_scratch());
    else
      return attend<Compute>(args, buffers.k, buffers.v, buffers);
  }

  /// The new tokens' keys and values go into the cache; all that it holds is attended to.
  Status attend_to_cache(const Arguments& args, const Buffers& buffers, Cache* cache) const {
    const cpu::RunShape& shape = buffers.shape;
    const auto k = cache->keys(shape.past, shape.fresh), v = cache->values(shape.past, shape.fresh);
    const TensorView<const Compute, 3> source =
        weights_.latent ? buffers.latent : args.key_source();
    if (shape.fresh > 0) {
      if constexpr (kCacheIsWide) {
        form_keys_and_values(source, buffers.rope_key, k, v, buffers);
      } else {
        form_keys_and_values(source, buffers.rope_key, buffers.k, buffers.v, buffers);
        cpu::copy(buffers.k, k);
        cpu::copy(buffers.v, v);
      }
    }
    return attend<CacheScalar>(args, cache->keys(0, shape.keys), cache->values(0, shape.keys),
                               buffers);
  }

  Weights weights_;
  Options options_;
  cpu::ProjectionPlan<Compute> k_, k_rope_, v_;
  std::vector<Compute> q_bias_, o_bias_, q_head_norm_, k_head_norm_, kv_norm_, q_norm_;
};

}  // namespace bda::inline v0

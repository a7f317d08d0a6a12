#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "bda/attention/arguments.hpp"
#include "bda/attention/step_cache.hpp"
#include "bda/core/dtype.hpp"
#include "bda/core/error.hpp"
#include "bda/core/status.hpp"
#include "bda/cuda/attend/attend.hpp"
#include "bda/cuda/attention_ready/attention_ready.hpp"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/layer/layer.hpp"
#include "bda/cuda/projection/projection.hpp"
#include "bda/cuda_backend/device_array.hpp"
#include "bda/cuda_backend/kv_cache.hpp"
#include "bda/cuda_backend/kv_plan.hpp"
#include "bda/cuda_backend/product.hpp"
#include "bda/cuda_backend/run_buffers.hpp"
#include "bda/model/attention_weights.hpp"

namespace bda::inline v0 {

namespace cuda {

template <DType>
struct ElementOf;
template <>
struct ElementOf<DType::kF16> {
  using type = __half;
};
template <>
struct ElementOf<DType::kBF16> {
  using type = __nv_bfloat16;
};

/// The library's own attention step, and the form an engine's has: two static functions over the
/// queries, keys, values and output as they lie in device memory. One that brings a cache (see
/// attention/step_cache.hpp) has
///   workspace_size(args, const Cache*, device) and
///   run(args, Cache*, device, workspace, bytes, stream)
/// in place of these, null without a cache: k and v are then the new tokens' alone, and query i has
/// position cache->length() + i.
struct BuiltInAttend {
  template <class T>
  static std::size_t workspace_size(const AttendArguments<T>& args, const DeviceInfo& device) {
    return cuda::workspace_size(args, device);
  }
  template <class T>
  static Status run(const AttendArguments<T>& args, const DeviceInfo& device, void* workspace,
                    std::size_t bytes, cudaStream_t stream) {
    return cuda::run(args, device, workspace, bytes, stream);
  }
  /// Optional: what can be refused before anything of the layer is launched.
  template <class T>
  static Status check(const AttendArguments<T>& args, const DeviceInfo& device) {
    if (Status s = check_arguments(args); !s.ok()) return s;
    return validate(config_for(args, device), args.shape(), device);
  }
};

}  // namespace cuda

/// Attention on an NVIDIA GPU: `BDAttention<CudaBackend<Eigen::half>>`.
///
/// S is the 16-bit type weights are stored in; activations and caches have the CUDA type of the
/// same bits, products accumulate in fp32. `x`, `context` and `out` are device memory whose tokens
/// follow each other evenly over the batch; the workspace is device memory. Nothing is allocated
/// and nothing synchronised while it runs, but for cublasLt's choice of algorithm at the first run
/// with a number of tokens: run once before a capture. Keys and values of a decomposed layer come
/// from one launch where both bases are slices; else each side is projected by itself and copied to
/// its place. A latent cache holds the latents; absorbed decoding attends to them, and needs no
/// keys.
///
/// Attend is the attention step; one that names a type `Cache` brings its own cache, for which
/// there is no `make_cache`, and has no absorbed products.
///
/// Not here, and refused: `mask.bias`; heads wider than 192; absorbed products where keys or values
/// have a bias or a basis that is no slice, and, of latents wider than 192, on anything but sm_90a.
template <Storage S, class Attend = cuda::BuiltInAttend>
class CudaBackend {
 public:
  using Weights = AttentionWeights<S>;
  using Compute = typename cuda::ElementOf<StorageTraits<S>::dtype>::type;
  struct Options {};
  using Stream = cudaStream_t;
  using Cache = typename CacheOfStep<Attend, cuda::KvCache<Compute>>::type;
  using Arguments = AttentionArguments<Compute>;

  /// Copies the weights to the current device. `weights` have passed `validate`. Throws bda::Error
  /// where there is no device, too little memory, or a width the kernels do not take.
  CudaBackend(Weights weights, Options options)
      : weights_(std::move(weights)),
        options_(options),
        device_(cuda::query_device<Compute>()),
        blas_(std::make_shared<const cuda::BlasHandle>()) {
    const AttentionConfig& c = weights_.config;
    for (const auto& [name, width] :
         {std::pair{"config.qk_dim", c.qk_dim}, std::pair{"config.rope_dim", c.rope_dim},
          std::pair{"config.v_dim", c.v_dim}, std::pair{"config.kv_dim", c.kv_dim},
          std::pair{"config.query_dim", c.query_dim}, std::pair{"config.out_dim", c.out_dim}})
      if (width != 0)  // no such channels, where a layer may have none
        check::multiple_of(name, width, 8, "elements in 16 bytes");
    check::in_range("config.qk_dim + config.rope_dim", c.head_dim(), 8, 192);
    check::in_range("config.v_dim", c.v_dim, 8, 192);
    q_bias_ = array(weights_.q_bias);
    o_bias_ = array(weights_.o_bias);
    q_ = matrix(weights_.q, q_bias_);
    o_ = matrix(weights_.o, o_bias_);
    k_ = plan(weights_.k, c.kv_dim, c.kv_heads, c.qk_dim);
    v_ = plan(weights_.v, c.kv_dim, c.kv_heads, c.v_dim);
    k_rope_ = plan(weights_.k_rope, weights_.context_dim(), c.rope_key_heads(), c.rope_dim);
    q_head_norm_ = array(weights_.q_head_norm);
    k_head_norm_ = array(weights_.k_head_norm);
    frequencies_ = cuda::DeviceArray<double>(c.rope.frequencies.data(),
                                             static_cast<std::int64_t>(c.rope.frequencies.size()));
    std::vector<float> sinks(weights_.sinks.begin(), weights_.sinks.end());
    sinks_ = cuda::DeviceArray<float>(sinks.data(), static_cast<std::int64_t>(sinks.size()));
    if (weights_.latent) {
      const auto& latent = *weights_.latent;
      kv_a_ = matrix(latent.kv_a, {});
      kv_norm_ = array(latent.kv_norm);
      q_norm_ = array(latent.q_norm);
      if (!latent.q_a.empty()) q_a_ = matrix(latent.q_a, {});
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
    if (form == CacheForm::kLatent && weights_.config.rope_key_heads() != 1)
      throw Error("cache.form", "kMaterialized, as each head has a rotary key of its own",
                  "kLatent");
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
    if (args.latent_products == LatentProducts::kAbsorbed && !is_latent(&cache))
      return Status::error(Status::Code::kUnsupported, "latent_products",
                           "kMaterialized, as the cache is not latent",
                           static_cast<int>(LatentProducts::kMaterialized),
                           static_cast<int>(args.latent_products));
    return {};
  }

  [[nodiscard]] std::size_t workspace_size(const Arguments& args) const {
    return buffers(args, nullptr, nullptr).bytes();
  }
  [[nodiscard]] std::size_t workspace_size(const Arguments& args, const Cache& cache) const {
    return buffers(args, &cache, nullptr).bytes();
  }

  Status run(const Arguments& args, std::span<std::byte> workspace, cudaStream_t stream) const {
    return run(args, nullptr, workspace, stream, [] { return Status{}; });
  }
  Status run(const Arguments& args, Cache& cache, std::span<std::byte> workspace,
             cudaStream_t stream) const {
    return run(args, &cache, workspace, stream, [] { return Status{}; });
  }
  /// The same, `cache` may be null; `first` is called once everything is checked, and what it
  /// launches comes before all of this layer.
  template <class First>
  Status run(const Arguments& args, Cache* cache, std::span<std::byte> workspace,
             cudaStream_t stream, const First& first) const {
    if (Status s = check_operands(args, cache); !s.ok()) return s;
    const Buffers b = buffers(args, cache, workspace.data());
    if (Status s =
            cuda::detail::check_parted_workspace(b.bytes(), workspace.data(), workspace.size());
        !s.ok())
      return s;
    const cuda::AttendArguments<T> step = attention_step(args, cache, b);
    if constexpr (requires { Attend::check(step, device_); })
      if (Status s = Attend::check(step, device_); !s.ok()) return s;
    if (Status s = first(); !s.ok()) return s;
    return launch(args, cache, step, b, stream);
  }

 private:
  using T = Compute;
  static constexpr bool kStepCache = BringsCache<Attend>;
  using Buffers = cuda::RunBuffers<T>;
  using Shape = cuda::RunShape;
  struct Matrix {
    cuda::DeviceArray<T> weight;
    cuda::Product<T> product;
  };

  [[nodiscard]] const AttentionConfig& config() const { return weights_.config; }
  [[nodiscard]] const void* layer_id() const { return o_.weight.data(); }  // survives a move

  // ---- weights
  template <class U>
  static cuda::DeviceArray<T> array(const std::vector<U>& values) {
    return {values.data(), static_cast<std::int64_t>(values.size())};
  }
  Matrix matrix(const bda::Matrix<S>& weight, const cuda::DeviceArray<T>& bias) const {
    Matrix m;
    m.weight = cuda::DeviceArray<T>(weight.data(), weight.size());
    m.product = cuda::Product<T>(blas_, m.weight.data(), bias.data(), weight.rows, weight.cols);
    return m;
  }
  cuda::KvPlan<T> plan(const KvProjection<S>& p, std::int64_t depth, std::int64_t heads,
                       std::int64_t width) const {
    return width == 0 ? cuda::KvPlan<T>() : cuda::KvPlan<T>(blas_, p, depth, heads, width);
  }

  // ---- views
  /// [batch, tokens, width] as [batch * tokens, width].
  template <class U>
  static TensorView<U, 2> flat(const TensorView<U, 3>& x) {
    return {x.data,
            {x.extent(0) * x.extent(1), x.extent(2)},
            {x.extent(1) > 1 || x.extent(0) < 2 ? x.stride(1) : x.stride(0), 1}};
  }
  template <class U>
  static TensorView<U, 4> rows_of(U* data, std::int64_t batch, std::int64_t tokens,
                                  std::int64_t heads, std::int64_t width) {
    return {data, {batch, tokens, heads, width}};
  }
  template <class U>
  static TensorView<const U, 3> heads_of(const U* data, std::int64_t rows, std::int64_t heads,
                                         std::int64_t width, std::int64_t step) {
    return {data, {rows, heads, width}, {heads * step, step, 1}};
  }
  /// Channels [first, first + count) of every head.
  template <class U, int Rank>
  static TensorView<U, Rank> channels(TensorView<U, Rank> x, std::int64_t first,
                                      std::int64_t count) {
    x.data += first;
    x.extents[Rank - 1] = count;
    return x;
  }
  /// Whether the tokens of all sequences follow each other at one stride.
  template <class U>
  static bool is_even(const TensorView<U, 4>& x) {
    return x.extent(0) < 2 || x.extent(1) < 2 || x.stride(0) == x.extent(1) * x.stride(1);
  }
  /// Sequence `b`, or, where they are even, all as one.
  template <class U>
  static TensorView<U, 3> sequence(const TensorView<U, 4>& x, std::int64_t b) {
    return {x.data + b * x.stride(0),
            {x.extent(1), x.extent(2), x.extent(3)},
            {x.stride(1), x.stride(2), x.stride(3)}};
  }
  template <class U>
  static TensorView<U, 3> as_one_sequence(const TensorView<U, 4>& x) {
    return {
        x.data,
        {x.extent(0) * x.extent(1), x.extent(2), x.extent(3)},
        {x.extent(1) > 1 || x.extent(0) < 2 ? x.stride(1) : x.stride(0), x.stride(2), x.stride(3)}};
  }

  template <class U>
  static TensorView<U, 4> batched(const TensorView<U, 3>& x) {
    return {x.data,
            {1, x.extent(0), x.extent(1), x.extent(2)},
            {0, x.stride(0), x.stride(1), x.stride(2)}};
  }

  // ---- one run
  static bool is_latent([[maybe_unused]] const Cache* cache) {
    if constexpr (kStepCache)
      return false;
    else
      return cache != nullptr && cache->form() == CacheForm::kLatent;
  }
  static Shape shape(const Arguments& args, const Cache* cache) {
    Shape s;
    s.batch = args.x.extent(0);
    s.queries = args.x.extent(1);
    s.past = cache == nullptr ? 0 : cache->length();
    s.fresh = args.key_source().extent(1);
    s.latent_cache = is_latent(cache);
    s.cached = cache != nullptr && !s.latent_cache && !kStepCache;
    s.absorbed = args.latent_products == LatentProducts::kAbsorbed;
    s.formed = s.absorbed || s.cached ? 0 : s.latent_cache ? s.keys() : s.fresh;
    return s;
  }
  Buffers buffers(const Arguments& args, const Cache* cache, std::byte* memory) const {
    const auto scratch = [this](std::int64_t rows) {
      return std::max({k_.scratch(rows), v_.scratch(rows), k_rope_.scratch(rows)});
    };
    Buffers b(config(), weights_.latent.has_value(), q_a_.product.columns() > 0, shape(args, cache),
              scratch, memory);
    const cuda::AttendArguments<T> step = attention_step(args, cache, b);
    if constexpr (kStepCache)
      b.add_attend(Attend::workspace_size(step, cache, device_));
    else
      b.add_attend(Attend::workspace_size(step, device_));
    return b;
  }

  /// [batch, keys, 1, kv_dim + rope_dim]: all latents, where they are attended to or cached.
  [[nodiscard]] TensorView<T, 4> latents(const Shape& s, const Cache* cache, const Buffers& b,
                                         std::int64_t first, std::int64_t count) const {
    if constexpr (!kStepCache)
      if (s.latent_cache) return cache->keys(first, count);
    return rows_of(b.latents, s.batch, s.fresh, 1, config().kv_dim + config().rope_dim);
  }

  /// What the attention step gets. `b` may still be without addresses.
  cuda::AttendArguments<T> attention_step(const Arguments& args, const Cache* cache,
                                          const Buffers& b) const {
    const AttentionConfig& c = config();
    const Shape s = shape(args, cache);
    cuda::AttendArguments<T> a;
    if (s.absorbed) {
      a.q = rows_of<const T>(b.absorbed_q, s.batch, s.queries, c.heads, c.kv_dim + c.rope_dim);
      a.k = latents(s, cache, b, 0, s.keys());
      a.v = channels(a.k, 0, c.kv_dim);
      a.out = rows_of<T>(b.mixed, s.batch, s.queries, c.heads, c.kv_dim);
    } else {
      a.q = rows_of<const T>(b.q, s.batch, s.queries, c.heads, c.head_dim());
      a.k = rows_of<const T>(b.keys, s.batch, s.formed, c.kv_heads, c.head_dim());
      a.v = rows_of<const T>(b.values, s.batch, s.formed, c.kv_heads, c.v_dim);
      if constexpr (!kStepCache) {
        if (s.cached) {
          a.k = cache->keys(0, s.keys());
          a.v = cache->values(0, s.keys());
        }
      }
      a.out = rows_of<T>(b.attended, s.batch, s.queries, c.heads, c.v_dim);
    }
    a.scale = static_cast<float>(c.scale);
    a.softcap = static_cast<float>(c.logit_softcap);
    a.causal = args.mask.causal;
    a.window = args.mask.window;
    a.key_lengths = args.mask.key_lengths == nullptr ? nullptr : b.key_lengths;
    a.sinks = sinks_.data();
    return a;
  }

  Status check_operands(const Arguments& args, const Cache* cache) const {
    const auto unsupported = [](const char* what, const char* rule, std::int64_t want,
                                std::int64_t got) {
      return Status::error(Status::Code::kUnsupported, what, rule, want, got);
    };
    if (args.mask.bias.data != nullptr)
      return unsupported("mask.bias", "empty on this backend", 0, 1);
    if (args.latent_products == LatentProducts::kAbsorbed) {
      const auto refuse = [&](const char* rule) {
        return unsupported("latent_products", rule, static_cast<int>(LatentProducts::kMaterialized),
                           static_cast<int>(LatentProducts::kAbsorbed));
      };
      if (kStepCache)
        return refuse("kMaterialized here, as the attention step keeps keys and values");
      if (!k_.absorbable() || !v_.absorbable())
        return refuse("kMaterialized here, as keys or values have a bias or a scattered basis");
      if (config().kv_heads != config().heads || config().rope_key_heads() != 1)
        return refuse("kMaterialized here, as heads share keys or have rotary keys of their own");
      const std::int64_t rows = args.x.extent(0) * args.x.extent(1);
      if (rows > 65535)  // of the absorbed products
        return Status::invalid("x.extent(0) * x.extent(1), absorbed", "at most", 65535, rows);
    }
    // Query i has position i + (tokens in the cache): the attention step counts from the last key.
    const std::int64_t offset = cache == nullptr ? 0 : cache->length();
    const std::int64_t keys = offset + args.key_source().extent(1);
    if ((args.mask.causal || args.mask.window > 0) && args.is_cross_attention() &&
        keys - args.x.extent(1) != 0)
      return unsupported("mask.causal", "false in cross-attention of other length", 0, 1);
    const auto even = [](const char* what, const auto& view) {
      if (view.data != nullptr && view.extent(0) > 1 && view.extent(1) > 1 &&
          view.stride(0) != view.extent(1) * view.stride(1))
        return Status::invalid(what, "tokens x stride(1)", view.extent(1) * view.stride(1),
                               view.stride(0));
      return Status{};
    };
    const auto aligned = [](const char* what, const auto& view) {
      if (const std::int64_t rest = cuda::detail::misalignment(view.data, 16); rest != 0)
        return Status::invalid(what, "a multiple of 16 bytes, modulo 16", 0, rest);
      return Status{};
    };
    for (const Status& s : {even("x.stride(0)", args.x), even("context.stride(0)", args.context),
                            even("out.stride(0)", args.out), aligned("x.data", args.x),
                            aligned("context.data", args.context), aligned("out.data", args.out)})
      if (!s.ok()) return s;
    for (const auto& [what, stride] : {std::pair{"x.stride(1)", args.x.stride(1)},
                                       std::pair{"out.stride(1)", args.out.stride(1)},
                                       std::pair{"context.stride(1)", args.context.stride(1)}})
      if (stride % 8 != 0) return Status::invalid(what, "a multiple of", 8, stride);
    return {};
  }

  Status launch(const Arguments& args, Cache* cache, const cuda::AttendArguments<T>& step,
                const Buffers& b, cudaStream_t stream) const {
    const Shape shape = CudaBackend::shape(args, cache);
    if (args.mask.key_lengths != nullptr)
      if (Status s =
              cuda::set_lengths<T>(args.mask.key_lengths, shape.batch, b.key_lengths, stream);
          !s.ok())
        return s;
    if (Status s = queries(args, shape, b, stream); !s.ok()) return s;
    if (shape.fresh > 0)
      if (Status s = fresh_keys(args, shape, cache, b, stream); !s.ok()) return s;
    if (shape.latent_cache && !shape.absorbed)
      if (Status s = keys_of_cached_latents(shape, cache, b, stream); !s.ok()) return s;
    if (shape.absorbed)
      if (Status s = absorb_queries(shape, b, stream); !s.ok()) return s;
    if (Status s = attend(step, cache, b, stream); !s.ok()) return s;
    const AttentionConfig& c = config();
    if (shape.absorbed)
      if (Status s =
              v_.expand(heads_of(b.mixed, shape.rows(), c.heads, c.kv_dim, c.kv_dim),
                        {b.attended, {shape.rows(), c.heads, c.v_dim}}, device_, b.blas, stream);
          !s.ok())
        return s;
    if (Status s =
            o_.product.run(TensorView<const T, 2>(b.attended, {shape.rows(), c.heads * c.v_dim}),
                           flat(args.out), b.blas, stream);
        !s.ok())
      return s;
    if (cache != nullptr) cache->set_length(shape.keys());
    return {};
  }

  Status attend(const cuda::AttendArguments<T>& step, [[maybe_unused]] Cache* cache,
                const Buffers& b, cudaStream_t stream) const {
    if constexpr (kStepCache)
      return Attend::run(step, cache, device_, b.attend, b.attend_bytes, stream);
    else
      return Attend::run(step, device_, b.attend, b.attend_bytes, stream);
  }

  Status rotate(const TensorView<T, 4>& x, std::int64_t position, cudaStream_t stream) const {
    const RopeConfig& rope = config().rope;
    return cuda::rotate<T>(x, frequencies_.data(), rope.style == RopeStyle::kInterleaved,
                           rope.magnitude, position, stream);
  }
  /// The last rope_dim channels of every head.
  [[nodiscard]] TensorView<T, 4> rope_part(const TensorView<T, 4>& x) const {
    return channels(x, config().qk_dim, config().rope_dim);
  }
  Status normalize_latent(const TensorView<const T, 4>& x, const cuda::DeviceArray<T>& weight,
                          const TensorView<T, 4>& out, cudaStream_t stream) const {
    return cuda::rms_norm<T>(x, weight.data(), static_cast<float>(weights_.latent->norm_epsilon),
                             out, stream);
  }
  Status normalize_heads(const TensorView<T, 4>& x, const cuda::DeviceArray<T>& weight,
                         cudaStream_t stream) const {
    return cuda::rms_norm<T>(x, weight.data(), static_cast<float>(weights_.head_norm_epsilon), x,
                             stream);
  }

  Status queries(const Arguments& args, const Shape& s, const Buffers& b,
                 cudaStream_t stream) const {
    const AttentionConfig& c = config();
    TensorView<const T, 2> source = flat(args.x);
    if (q_a_.product.columns() > 0) {
      const TensorView<T, 2> compressed(b.query_latent, {s.rows(), c.query_dim});
      if (Status e = q_a_.product.run(source, compressed, b.blas, stream); !e.ok()) return e;
      const auto as_rows = rows_of(b.query_latent, 1, s.rows(), 1, c.query_dim);
      if (Status e = normalize_latent(as_rows, q_norm_, as_rows, stream); !e.ok()) return e;
      source = compressed;
    }
    if (Status e =
            q_.product.run(source, {b.q, {s.rows(), c.heads * c.head_dim()}}, b.blas, stream);
        !e.ok())
      return e;
    const TensorView<T, 4> q = rows_of(b.q, s.batch, s.queries, c.heads, c.head_dim());
    if (q_head_norm_.size() > 0)
      if (Status e = normalize_heads(q, q_head_norm_, stream); !e.ok()) return e;
    if (c.rope_dim == 0) return {};
    return rotate(rope_part(q), s.past, stream);
  }

  /// The new tokens' latents and rope keys, to the cache or into keys and values.
  Status fresh_keys(const Arguments& args, const Shape& s, const Cache* cache, const Buffers& b,
                    cudaStream_t stream) const {
    const AttentionConfig& c = config();
    const bool to_latents = s.absorbed || s.latent_cache;
    const TensorView<const T, 2> source = flat(args.key_source());
    TensorView<const T, 4> latent(source.data, {s.batch, s.fresh, 1, c.kv_dim},
                                  {s.fresh * source.stride(0), source.stride(0), c.kv_dim, 1});
    TensorView<T, 4> stored{};
    if (to_latents) stored = latents(s, cache, b, s.past, s.fresh);
    if (weights_.latent) {
      const TensorView<T, 2> compressed(b.latent, {s.fresh_rows(), c.kv_dim});
      if (Status e = kv_a_.product.run(source, compressed, b.blas, stream); !e.ok()) return e;
      const TensorView<T, 4> raw = rows_of(b.latent, s.batch, s.fresh, 1, c.kv_dim);
      const TensorView<T, 4> normed = to_latents ? channels(stored, 0, c.kv_dim) : raw;
      if (Status e = normalize_latent(raw, kv_norm_, normed, stream); !e.ok()) return e;
      latent = raw;
    }
    const bool norms = k_head_norm_.size() > 0;
    const TensorView<T, 4> rope = rows_of(b.rope, s.batch, s.fresh, c.rope_key_heads(), c.rope_dim);
    if (c.rope_dim > 0) {
      if (Status e = k_rope_.run(source, as_one_sequence(rope), b.scratch, device_, b.blas, stream);
          !e.ok())
        return e;
      if (!norms)  // once for all heads that share it
        if (Status e = rotate(rope, s.past, stream); !e.ok()) return e;
    }
    if (to_latents)
      return c.rope_dim == 0
                 ? Status{}
                 : cuda::copy_rows<T>(rope, channels(stored, c.kv_dim, c.rope_dim), stream);

    TensorView<T, 4> keys = rows_of(b.keys, s.batch, s.fresh, c.kv_heads, c.head_dim());
    TensorView<T, 4> values = rows_of(b.values, s.batch, s.fresh, c.kv_heads, c.v_dim);
    if constexpr (!kStepCache) {
      if (s.cached) {
        keys = cache->keys(s.past, s.fresh);
        values = cache->values(s.past, s.fresh);
      }
    }
    if (Status e = project(latent, rope, keys, values, b, stream); !e.ok() || !norms) return e;
    if (Status e = normalize_heads(keys, k_head_norm_, stream); !e.ok() || c.rope_dim == 0)
      return e;
    return rotate(rope_part(keys), s.past, stream);
  }

  Status keys_of_cached_latents(const Shape& s, const Cache* cache, const Buffers& b,
                                cudaStream_t stream) const {
    const AttentionConfig& c = config();
    const TensorView<const T, 4> all = latents(s, cache, b, 0, s.keys());
    return project(channels(all, 0, c.kv_dim), channels(all, c.kv_dim, c.rope_dim),
                   rows_of(b.keys, s.batch, s.keys(), c.kv_heads, c.head_dim()),
                   rows_of(b.values, s.batch, s.keys(), c.kv_heads, c.v_dim), b, stream);
  }

  /// Keys and values [batch, tokens, kv_heads, width] from latents [batch, tokens, 1, kv_dim] and
  /// rope keys [batch, tokens, rope heads, rope_dim].
  Status project(const TensorView<const T, 4>& latent, const TensorView<const T, 4>& rope,
                 const TensorView<T, 4>& keys, const TensorView<T, 4>& values, const Buffers& b,
                 cudaStream_t stream) const {
    if (is_even(latent) && (config().rope_dim == 0 || is_even(rope)) && is_even(keys) &&
        is_even(values))
      return project(as_one_sequence(latent), as_one_sequence(rope), as_one_sequence(keys),
                     as_one_sequence(values), b, stream);
    for (std::int64_t i = 0; i < latent.extent(0); ++i)
      if (Status s = project(sequence(latent, i), sequence(rope, i), sequence(keys, i),
                             sequence(values, i), b, stream);
          !s.ok())
        return s;
    return {};
  }
  Status project(const TensorView<const T, 3>& latent, const TensorView<const T, 3>& rope,
                 const TensorView<T, 3>& keys, const TensorView<T, 3>& values, const Buffers& b,
                 cudaStream_t stream) const {
    const AttentionConfig& c = config();
    const std::int64_t rows = latent.extent(0);
    const TensorView<const T, 2> x(latent.data, {rows, c.kv_dim}, {latent.stride(0), 1});
    if (one_launch()) {
      cuda::AttentionReadyArguments<T> a;
      a.latent = x;
      if (c.rope_dim > 0) a.rope = {rope.data, {rows, c.rope_dim}, {rope.stride(0), 1}};
      a.key = side(k_, keys);
      a.value = side(v_, values);
      if (cuda::workspace_size(a, device_) == 0) return cuda::run(a, device_, nullptr, 0, stream);
    }
    if (c.qk_dim > 0)
      if (Status s = place(k_, x, channels(keys, 0, c.qk_dim), b, stream); !s.ok()) return s;
    if (c.rope_dim > 0) {
      TensorView<const T, 4> from = batched(rope);
      from.extents[2] = c.kv_heads;
      if (c.shared_rope_key) from.strides[2] = 0;
      if (Status s = cuda::copy_rows<T>(from, rope_part(batched(keys)), stream); !s.ok()) return s;
    }
    return place(v_, x, values, b, stream);
  }
  /// One side by itself, and to its place where the product cannot write there.
  Status place(const cuda::KvPlan<T>& plan, const TensorView<const T, 2>& x,
               const TensorView<T, 3>& to, const Buffers& b, cudaStream_t stream) const {
    if (plan.writes(to.stride(1))) return plan.run(x, to, b.scratch, device_, b.blas, stream);
    const TensorView<T, 3> dense(b.side, {to.extent(0), to.extent(1), to.extent(2)});
    if (Status s = plan.run(x, dense, b.scratch, device_, b.blas, stream); !s.ok()) return s;
    return cuda::copy_rows<T>(batched(dense), batched(to), stream);
  }

  /// The queries in latent space: [q Wᵀ | rope].
  Status absorb_queries(const Shape& s, const Buffers& b, cudaStream_t stream) const {
    const AttentionConfig& c = config();
    const std::int64_t width = c.kv_dim + c.rope_dim;
    if (Status e =
            k_.absorb(heads_of(b.q, s.rows(), c.heads, c.qk_dim, c.head_dim()),
                      {b.absorbed_q, {s.rows(), c.heads, c.kv_dim}, {c.heads * width, width, 1}},
                      device_, b.blas, stream);
        !e.ok() || c.rope_dim == 0)
      return e;
    const TensorView<T, 4> q = rows_of(b.q, 1, s.rows(), c.heads, c.head_dim());
    return cuda::copy_rows<T>(
        rope_part(q),
        channels(rows_of(b.absorbed_q, 1, s.rows(), c.heads, width), c.kv_dim, c.rope_dim), stream);
  }

  /// Whether keys and values can come from one launch.
  [[nodiscard]] bool one_launch() const {
    const AttentionConfig& c = config();
    return k_.decomposed() && v_.decomposed() && !k_.gathers() && !v_.gathers() &&
           k_head_norm_.size() == 0 && (c.rope_dim == 0 || c.shared_rope_key);
  }
  static cuda::KvSide<T> side(const cuda::KvPlan<T>& plan, const TensorView<T, 3>& to) {
    cuda::KvSide<T> s;
    s.coefficients = plan.coefficients();
    s.packing = plan.packing();
    s.basis_begin = plan.basis_begin();
    s.bias = plan.bias();
    s.out.data = to.data;
    s.out.token_stride = to.stride(0);
    s.out.head_stride = to.stride(1);
    return s;
  }

  Weights weights_;
  Options options_;
  cuda::DeviceInfo device_;
  std::shared_ptr<const cuda::BlasHandle> blas_;
  cuda::DeviceArray<T> q_bias_, o_bias_, q_head_norm_, k_head_norm_, kv_norm_, q_norm_;
  cuda::DeviceArray<double> frequencies_;
  cuda::DeviceArray<float> sinks_;
  Matrix q_, o_, kv_a_, q_a_;
  cuda::KvPlan<T> k_, v_, k_rope_;
};

}  // namespace bda::inline v0

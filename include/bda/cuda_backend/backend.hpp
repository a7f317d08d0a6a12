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
/// its place.
///
/// Attend is the attention step; one that names a type `Cache` brings its own cache, for which
/// there is no `make_cache`.
///
/// Not here, and refused: a latent cache and absorbed products, `mask.key_lengths`, `mask.bias`,
/// heads wider than 192.
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
    if (form != CacheForm::kMaterialized)
      throw Error("cache.form", "kMaterialized, the one form of this backend", "kLatent");
    return Cache(weights_.config, layer_id(), batch, capacity);
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
    return {};
  }

  [[nodiscard]] std::size_t workspace_size(const Arguments& args) const {
    return Buffers(*this, args, nullptr, nullptr).bytes;
  }
  [[nodiscard]] std::size_t workspace_size(const Arguments& args, const Cache& cache) const {
    return Buffers(*this, args, &cache, nullptr).bytes;
  }

  Status run(const Arguments& args, std::span<std::byte> workspace, cudaStream_t stream) const {
    return run(args, static_cast<Cache*>(nullptr), workspace, stream);
  }
  Status run(const Arguments& args, Cache& cache, std::span<std::byte> workspace,
             cudaStream_t stream) const {
    return run(args, &cache, workspace, stream);
  }

 private:
  using T = Compute;
  static constexpr bool kStepCache = BringsCache<Attend>;
  struct Matrix {
    cuda::DeviceArray<T> weight;
    cuda::Product<T> product;
  };

  /// Where everything lies in the workspace; with a null base only its size.
  struct Buffers {
    std::byte* base = nullptr;
    std::size_t bytes = 0;
    void* blas = nullptr;
    T *query_latent, *q, *latent, *keys, *values, *nope, *rope, *v_rows, *scratch, *attended;
    std::byte* attend = nullptr;
    std::size_t attend_bytes = 0;

    Buffers(const CudaBackend& layer, const Arguments& args, const Cache* cache, std::byte* memory)
        : base(memory) {
      const AttentionConfig& c = layer.config();
      const std::int64_t rows = args.x.extent(0) * args.x.extent(1);
      const std::int64_t key_rows = args.x.extent(0) * args.key_source().extent(1);
      blas = take(cuda::kBlasWorkspaceBytes);
      query_latent = array(layer.q_a_.product.columns() > 0 ? rows * c.query_dim : 0);
      q = array(rows * c.heads * c.head_dim());
      latent = array(layer.weights_.latent ? key_rows * c.kv_dim : 0);
      const bool formed_here = kStepCache || cache == nullptr;
      keys = array(formed_here ? key_rows * c.kv_heads * c.head_dim() : 0);
      values = array(formed_here ? key_rows * c.kv_heads * c.v_dim : 0);
      nope = array(key_rows * c.kv_heads * c.qk_dim);
      rope = array(key_rows * c.rope_key_heads() * c.rope_dim);
      v_rows = array(key_rows * c.kv_heads * c.v_dim);
      scratch = array(std::max({layer.k_.scratch(key_rows), layer.v_.scratch(key_rows),
                                layer.k_rope_.scratch(key_rows)}));
      attended = array(rows * c.heads * c.v_dim);
      const auto step = layer.attention_step(args, cache, *this);
      if constexpr (kStepCache)
        attend_bytes = Attend::workspace_size(step, cache, layer.device_);
      else
        attend_bytes = Attend::workspace_size(step, layer.device_);
      attend = take(attend_bytes);
    }

    std::byte* take(std::size_t size) {
      std::byte* const at = base == nullptr ? nullptr : base + bytes;
      bytes += (size + 255) / 256 * 256;
      return at;
    }
    T* array(std::int64_t count) {
      return reinterpret_cast<T*>(take(static_cast<std::size_t>(count) * sizeof(T)));
    }
  };

  [[nodiscard]] const AttentionConfig& config() const { return weights_.config; }
  [[nodiscard]] const void* layer_id() const { return o_.weight.data(); }  // survives a move

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

  /// What the attention step gets. `buffers` may still be without addresses.
  cuda::AttendArguments<T> attention_step(const Arguments& args, const Cache* cache,
                                          const Buffers& buffers) const {
    const AttentionConfig& c = config();
    const std::int64_t batch = args.x.extent(0), queries = args.x.extent(1);
    const std::int64_t new_keys = args.key_source().extent(1);
    cuda::AttendArguments<T> a;
    a.q = rows_of<const T>(buffers.q, batch, queries, c.heads, c.head_dim());
    a.k = rows_of<const T>(buffers.keys, batch, new_keys, c.kv_heads, c.head_dim());
    a.v = rows_of<const T>(buffers.values, batch, new_keys, c.kv_heads, c.v_dim);
    if constexpr (!kStepCache) {
      if (cache != nullptr) {
        a.k = cache->keys(0, cache->length() + new_keys);
        a.v = cache->values(0, cache->length() + new_keys);
      }
    }
    a.out = rows_of<T>(buffers.attended, batch, queries, c.heads, c.v_dim);
    a.scale = static_cast<float>(c.scale);
    a.softcap = static_cast<float>(c.logit_softcap);
    a.causal = args.mask.causal;
    a.window = args.mask.window;
    a.sinks = sinks_.data();
    return a;
  }

  Status check_operands(const Arguments& args, const Cache* cache) const {
    const auto unsupported = [](const char* what, const char* rule, std::int64_t want,
                                std::int64_t got) {
      return Status::error(Status::Code::kUnsupported, what, rule, want, got);
    };
    if (args.mask.key_lengths != nullptr)
      return unsupported("mask.key_lengths", "null on this backend", 0, 1);
    if (args.mask.bias.data != nullptr)
      return unsupported("mask.bias", "empty on this backend", 0, 1);
    if (args.latent_products != LatentProducts::kMaterialized)
      return unsupported("latent_products", "kMaterialized on this backend",
                         static_cast<int>(LatentProducts::kMaterialized),
                         static_cast<int>(args.latent_products));
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

  Status run(const Arguments& args, Cache* cache, std::span<std::byte> workspace,
             cudaStream_t stream) const {
    if (Status s = check_operands(args, cache); !s.ok()) return s;
    const Buffers b(*this, args, cache, workspace.data());
    if (workspace.size() < b.bytes || workspace.data() == nullptr)
      return Status::error(Status::Code::kWorkspaceTooSmall, "workspace.size()",
                           "at least workspace_size", static_cast<std::int64_t>(b.bytes),
                           static_cast<std::int64_t>(workspace.size()));
    if (const std::int64_t rest = cuda::detail::misalignment(workspace.data(), 256); rest != 0)
      return Status::invalid("workspace.data()", "a multiple of", 256, rest);
    if (Status s = queries(args, cache, b, stream); !s.ok()) return s;
    if (Status s = keys_and_values(args, cache, b, stream); !s.ok()) return s;
    if (Status s = attend(attention_step(args, cache, b), cache, b, stream); !s.ok()) return s;
    const std::int64_t rows = args.x.extent(0) * args.x.extent(1);
    if (Status s = o_.product.run(
            TensorView<const T, 2>(b.attended, {rows, config().heads * config().v_dim}),
            flat(args.out), b.blas, stream);
        !s.ok())
      return s;
    if (cache != nullptr) cache->set_length(cache->length() + args.key_source().extent(1));
    return {};
  }

  Status attend(const cuda::AttendArguments<T>& step, Cache* cache, const Buffers& b,
                cudaStream_t stream) const {
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
  [[nodiscard]] TensorView<T, 4> rope_part(TensorView<T, 4> x) const {
    x.data += config().qk_dim;
    x.extents[3] = config().rope_dim;
    return x;
  }

  Status queries(const Arguments& args, const Cache* cache, const Buffers& b,
                 cudaStream_t stream) const {
    const AttentionConfig& c = config();
    const std::int64_t batch = args.x.extent(0), tokens = args.x.extent(1), rows = batch * tokens;
    TensorView<const T, 2> source = flat(args.x);
    if (q_a_.product.columns() > 0) {
      const TensorView<T, 2> compressed(b.query_latent, {rows, c.query_dim});
      if (Status s = q_a_.product.run(source, compressed, b.blas, stream); !s.ok()) return s;
      const auto as_rows = rows_of(b.query_latent, 1, rows, 1, c.query_dim);
      if (Status s =
              cuda::rms_norm<T>(as_rows, q_norm_.data(),
                                static_cast<float>(weights_.latent->norm_epsilon), as_rows, stream);
          !s.ok())
        return s;
      source = compressed;
    }
    if (Status s = q_.product.run(source, {b.q, {rows, c.heads * c.head_dim()}}, b.blas, stream);
        !s.ok())
      return s;
    const TensorView<T, 4> q = rows_of(b.q, batch, tokens, c.heads, c.head_dim());
    if (q_head_norm_.size() > 0)
      if (Status s = cuda::rms_norm<T>(q, q_head_norm_.data(),
                                       static_cast<float>(weights_.head_norm_epsilon), q, stream);
          !s.ok())
        return s;
    if (c.rope_dim == 0) return {};
    return rotate(rope_part(q), cache == nullptr ? 0 : cache->length(), stream);
  }

  Status keys_and_values(const Arguments& args, const Cache* cache, const Buffers& b,
                         cudaStream_t stream) const {
    const AttentionConfig& c = config();
    const std::int64_t batch = args.x.extent(0), tokens = args.key_source().extent(1);
    const std::int64_t rows = batch * tokens, first = cache == nullptr ? 0 : cache->length();
    if (rows == 0) return {};
    const TensorView<const T, 2> source = flat(args.key_source());
    TensorView<const T, 2> latent = source;
    if (weights_.latent) {
      const TensorView<T, 2> compressed(b.latent, {rows, c.kv_dim});
      if (Status s = kv_a_.product.run(source, compressed, b.blas, stream); !s.ok()) return s;
      const auto as_rows = rows_of(b.latent, 1, rows, 1, c.kv_dim);
      if (Status s =
              cuda::rms_norm<T>(as_rows, kv_norm_.data(),
                                static_cast<float>(weights_.latent->norm_epsilon), as_rows, stream);
          !s.ok())
        return s;
      latent = compressed;
    }
    const bool norms = k_head_norm_.size() > 0;
    const TensorView<T, 4> rope = rows_of(b.rope, batch, tokens, c.rope_key_heads(), c.rope_dim);
    if (c.rope_dim > 0) {
      if (Status s = k_rope_.run(source, b.rope, b.scratch, device_, b.blas, stream); !s.ok())
        return s;
      if (!norms)  // once for all heads that share it
        if (Status s = rotate(rope, first, stream); !s.ok()) return s;
    }

    TensorView<T, 4> keys = rows_of(b.keys, batch, tokens, c.kv_heads, c.head_dim());
    TensorView<T, 4> values = rows_of(b.values, batch, tokens, c.kv_heads, c.v_dim);
    bool evenly = true;  // rows at one stride
    if constexpr (!kStepCache) {
      if (cache != nullptr) {
        keys = cache->keys(first, tokens), values = cache->values(first, tokens);
        evenly = batch == 1;
      }
    }
    if (evenly && one_launch()) {
      cuda::AttentionReadyArguments<T> a;
      a.latent = latent;
      if (c.rope_dim > 0) a.rope = {b.rope, {rows, c.rope_dim}};
      a.key = side(k_, keys);
      a.value = side(v_, values);
      const std::size_t bytes = cuda::workspace_size(a, device_);
      if (bytes == 0) return cuda::run(a, device_, nullptr, 0, stream);
    }
    if (c.qk_dim > 0) {
      if (Status s = k_.run(latent, b.nope, b.scratch, device_, b.blas, stream); !s.ok()) return s;
      TensorView<T, 4> to = keys;
      to.extents[3] = c.qk_dim;
      if (Status s =
              cuda::copy_rows<T>(rows_of(b.nope, batch, tokens, c.kv_heads, c.qk_dim), to, stream);
          !s.ok())
        return s;
    }
    if (c.rope_dim > 0) {
      TensorView<const T, 4> from = rope;
      from.extents[2] = c.kv_heads;
      if (c.shared_rope_key) from.strides[2] = 0;
      if (Status s = cuda::copy_rows<T>(from, rope_part(keys), stream); !s.ok()) return s;
    }
    if (norms) {
      if (Status s =
              cuda::rms_norm<T>(keys, k_head_norm_.data(),
                                static_cast<float>(weights_.head_norm_epsilon), keys, stream);
          !s.ok())
        return s;
      if (c.rope_dim > 0)
        if (Status s = rotate(rope_part(keys), first, stream); !s.ok()) return s;
    }
    if (Status s = v_.run(latent, b.v_rows, b.scratch, device_, b.blas, stream); !s.ok()) return s;
    return cuda::copy_rows<T>(rows_of(b.v_rows, batch, tokens, c.kv_heads, c.v_dim), values,
                              stream);
  }

  /// Whether keys and values can come from one launch.
  [[nodiscard]] bool one_launch() const {
    const AttentionConfig& c = config();
    return k_.decomposed() && v_.decomposed() && !k_.gathers() && !v_.gathers() &&
           k_head_norm_.size() == 0 && (c.rope_dim == 0 || c.shared_rope_key);
  }
  static cuda::KvSide<T> side(const cuda::KvPlan<T>& plan, const TensorView<T, 4>& to) {
    cuda::KvSide<T> s;
    s.coefficients = plan.coefficients();
    s.packing = plan.packing();
    s.basis_begin = plan.basis_begin();
    s.bias = plan.bias();
    s.out.data = to.data;
    s.out.token_stride = to.stride(1);
    s.out.head_stride = to.stride(2);
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

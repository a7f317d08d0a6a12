#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "bda/attention/arguments.hpp"
#include "bda/core/checks.hpp"
#include "bda/core/status.hpp"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/layer/layer.hpp"
#include "bda/cuda_backend/backend.hpp"

namespace bda::inline v0 {

/// A layer that computes in another 16-bit type than the activations around it have:
///
///     BDAttention<CastingCudaBackend<Eigen::bfloat16, CudaBackend<Eigen::half>>>
///
/// is an fp16 layer in a bf16 model. `x` and `context` are cast on their way in, `out` on its way
/// out; all between, caches too, is Backend's. It costs two passes over the hidden states and no
/// byte of weights or cache, and is for bases of channels that cannot be rotated (multi-head
/// attention without a latent): there the entries of queries and keys are larger than the products
/// they cancel to, and the 8 bits of bf16 are felt. Activations and weights have to be in the range
/// of Backend's type: what is not becomes inf, and shows.
template <Storage Activation, class Backend>
class CastingCudaBackend {
  using Inner = typename Backend::Compute;

 public:
  using Weights = typename Backend::Weights;
  using Compute = typename cuda::ElementOf<StorageTraits<Activation>::dtype>::type;
  using Options = typename Backend::Options;
  using Stream = typename Backend::Stream;
  using Cache = typename Backend::Cache;
  using Arguments = AttentionArguments<Compute>;
  static_assert(!std::is_same_v<Compute, Inner>, "nothing to cast: use Backend itself");

  /// As Backend's. Throws bda::Error too where the hidden states are no multiple of 8 wide.
  CastingCudaBackend(Weights weights, Options options)
      : backend_(std::move(weights), std::move(options)) {
    check::multiple_of("hidden_dim", this->weights().hidden_dim(), 8, "elements in 16 bytes");
    check::multiple_of("context_dim", this->weights().context_dim(), 8, "elements in 16 bytes");
  }

  [[nodiscard]] const Weights& weights() const { return backend_.weights(); }
  [[nodiscard]] const Options& options() const { return backend_.options(); }
  [[nodiscard]] Cache make_cache(std::int64_t batch, std::int64_t capacity, CacheForm form) const {
    return backend_.make_cache(batch, capacity, form);
  }
  Status check(const Arguments& args, const Cache& cache) const {
    return backend_.check(Buffers(args, nullptr).inner, cache);
  }

  [[nodiscard]] std::size_t workspace_size(const Arguments& args) const {
    const Buffers b(args, nullptr);
    return b.bytes + backend_.workspace_size(b.inner);
  }
  [[nodiscard]] std::size_t workspace_size(const Arguments& args, const Cache& cache) const {
    const Buffers b(args, nullptr);
    return b.bytes + backend_.workspace_size(b.inner, cache);
  }

  Status run(const Arguments& args, std::span<std::byte> workspace, cudaStream_t stream) const {
    return run(args, nullptr, workspace_size(args), workspace, stream);
  }
  Status run(const Arguments& args, Cache& cache, std::span<std::byte> workspace,
             cudaStream_t stream) const {
    return run(args, &cache, workspace_size(args, cache), workspace, stream);
  }

 private:
  /// The operands in Backend's type, one after the other in the workspace; with a null base their
  /// size, and views that are only good for their shapes.
  struct Buffers {
    Buffers(const Arguments& args, std::byte* base) {
      const auto place = [&]<class U>(const TensorView<U, 3>& view) {
        using To = std::conditional_t<std::is_const_v<U>, const Inner, Inner>;
        const auto size =
            cuda::detail::part_size(static_cast<std::size_t>(view.size()) * sizeof(Inner));
        auto* const data = base != nullptr ? reinterpret_cast<To*>(base + bytes)
                                           : reinterpret_cast<To*>(view.data);
        bytes += size;
        return TensorView<To, 3>(data, {view.extent(0), view.extent(1), view.extent(2)});
      };
      inner.x = place(args.x);
      if (args.is_cross_attention()) inner.context = place(args.context);
      inner.out = place(args.out);
      inner.mask.causal = args.mask.causal;
      inner.mask.window = args.mask.window;
      inner.mask.key_lengths = args.mask.key_lengths;
      if (args.mask.bias.data != nullptr)  // for Backend to refuse
        inner.mask.bias = {reinterpret_cast<const Inner*>(args.mask.bias.data),
                           args.mask.bias.extents, args.mask.bias.strides};
      inner.latent_products = args.latent_products;
    }
    AttentionArguments<Inner> inner;
    std::size_t bytes = 0;
  };

  template <class U>
  static Status check_rows(const char* data, const char* stride0, const char* stride1,
                           const TensorView<U, 3>& view) {
    if (const std::int64_t rest = cuda::detail::misalignment(view.data, 16); rest != 0)
      return Status::invalid(data, "a multiple of 16 bytes, modulo 16", 0, rest);
    if (view.extent(0) > 1 && view.stride(0) % 8 != 0)
      return Status::invalid(stride0, "a multiple of", 8, view.stride(0));
    if (view.extent(1) > 1 && view.stride(1) % 8 != 0)
      return Status::invalid(stride1, "a multiple of", 8, view.stride(1));
    return {};
  }

  Status run(const Arguments& args, Cache* cache, std::size_t needed,
             std::span<std::byte> workspace, cudaStream_t stream) const {
    for (const Status& s :
         {check_rows("x.data", "x.stride(0)", "x.stride(1)", args.x),
          check_rows("context.data", "context.stride(0)", "context.stride(1)", args.context),
          check_rows("out.data", "out.stride(0)", "out.stride(1)", args.out),
          cuda::detail::check_parted_workspace(needed, workspace.data(), workspace.size())})
      if (!s.ok()) return s;
    const Buffers b(args, workspace.data());
    const auto cast_in = [&] {
      Status s = cuda::cast_rows<Compute, Inner>(args.x, writable(b.inner.x), stream);
      if (s.ok() && args.is_cross_attention())
        s = cuda::cast_rows<Compute, Inner>(args.context, writable(b.inner.context), stream);
      return s;
    };
    if (Status s = backend_.run(b.inner, cache, workspace.subspan(b.bytes), stream, cast_in);
        !s.ok())
      return s;
    return cuda::cast_rows<Inner, Compute>(b.inner.out, args.out, stream);
  }
  static TensorView<Inner, 3> writable(const TensorView<const Inner, 3>& view) {
    return {const_cast<Inner*>(view.data), view.extents, view.strides};
  }

  Backend backend_;
};

}  // namespace bda::inline v0

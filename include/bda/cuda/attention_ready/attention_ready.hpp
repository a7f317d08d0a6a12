#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>

#include "bda/core/status.hpp"
#include "bda/cuda/attention_ready/arguments.hpp"
#include "bda/cuda/attention_ready/config.hpp"

/// The entry points, for plain C++. Their bodies are in attention_ready.cuh; one .cu file of the
/// program says BDA_INSTANTIATE_CUDA_ATTENTION_READY(T), besides
/// BDA_INSTANTIATE_CUDA_PROJECTION(T), for the types it uses.
namespace bda::inline v0::cuda {

/// How `run` will compute: `args.force` or `pick`'s.
template <class T>
[[nodiscard]] AttentionReadyConfig config_for(const AttentionReadyArguments<T>& args,
                                              const DeviceInfo& device) {
  return args.force ? *args.force : pick(args.shape(), device);
}

namespace detail {

/// Whether the projection's kernels can write this side where it belongs.
[[nodiscard]] constexpr bool writes_directly(const KvOutput& out) {
  return out.slots == nullptr && out.element == KvElement::kSame;
}

}  // namespace detail

/// Bytes of device memory `run` needs besides the operands, 256-byte aligned: none in one launch;
/// one side's rows where project_then_place cannot write them directly.
template <class T>
[[nodiscard]] std::size_t workspace_size(const AttentionReadyArguments<T>& args,
                                         const DeviceInfo& device) {
  if (config_for(args, device).kernel == AttentionReadyKernel::kSm90Resident) return 0;
  std::int64_t elements = 0;  // keys are placed before values are projected
  for (const auto* side : {&args.key, &args.value})
    if (*side && !detail::writes_directly((*side)->out))
      elements = std::max(elements, args.latent.extent(0) * (*side)->packing.columns());
  return static_cast<std::size_t>(elements) * sizeof(T);
}

/// Writes keys and values on `stream`. Allocates nothing, synchronises nothing, may be captured in
/// a graph and run on several streams at once (each with its workspace). A Status other than ok
/// means that the arguments were refused and nothing was launched, or that a launch failed.
/// `device` is `query_device<T>()` of the current device.
template <class T>
[[nodiscard]] Status run(const AttentionReadyArguments<T>& args, const DeviceInfo& device,
                         void* workspace, std::size_t workspace_bytes, cudaStream_t stream);

}  // namespace bda::inline v0::cuda

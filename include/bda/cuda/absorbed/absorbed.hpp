#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "bda/core/status.hpp"
#include "bda/cuda/absorbed/arguments.hpp"
#include "bda/cuda/absorbed/config.hpp"

/// The entry points, for plain C++. Their bodies are in absorbed.cuh; one .cu file of the program
/// says BDA_INSTANTIATE_CUDA_ABSORBED(T), besides BDA_INSTANTIATE_CUDA_PROJECTION(T), for the types
/// it uses.
namespace bda::inline v0::cuda {

/// The kernel `run` will use: `args.force` or `pick`'s.
template <class T>
[[nodiscard]] AbsorbedConfig config_for(const AbsorbedArguments<T>& args,
                                        const DeviceInfo& device) {
  return args.force ? *args.force : pick(args.shape(), device);
}

/// Bytes of device memory `run` needs besides the operands: none, so far.
template <class T>
[[nodiscard]] std::size_t workspace_size(const AbsorbedArguments<T>&, const DeviceInfo&) {
  return 0;
}

/// Computes the product on `stream`. Allocates nothing, synchronises nothing, may be captured in a
/// graph and run on several streams at once. A Status other than ok means that nothing was
/// launched. `device` is `query_device<T>()` of the current device.
template <class T>
[[nodiscard]] Status run(const AbsorbedArguments<T>& args, const DeviceInfo& device,
                         void* workspace, std::size_t workspace_bytes, cudaStream_t stream);

}  // namespace bda::inline v0::cuda

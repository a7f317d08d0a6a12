#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "bda/core/status.hpp"
#include "bda/cuda/projection/arguments.hpp"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/projection/packing.hpp"

/// The entry points, for plain C++. Their bodies and the kernels are in projection.cuh; one .cu
/// file of the program includes that and says BDA_INSTANTIATE_CUDA_PROJECTION(T) for the types it
/// uses
/// (__half, __nv_bfloat16, float).
namespace bda::inline v0::cuda {

/// Set-up: what `pick` needs to know of the current device and of how this program was built.
/// Throws bda::Error when there is no device.
template <class T>
[[nodiscard]] DeviceInfo query_device();

/// Set-up: packs C on the device, [rest, heads * width] with `row_stride` elements between rows,
/// into `packed` (layout.size() elements). Asynchronous on `stream`.
template <class T>
[[nodiscard]] Status pack_coefficients_on_device(const T* coefficients, std::int64_t row_stride,
                                                 const PackedCoefficients& layout, T* packed,
                                                 cudaStream_t stream);

/// The kernel `run` will use: `args.force` or `pick`'s.
template <class T>
[[nodiscard]] ProjectionConfig config_for(const ProjectionArguments<T>& args,
                                          const DeviceInfo& device) {
  return args.force ? *args.force : pick(args.shape(), device, args.dependent_launch);
}

/// Bytes of device memory `run` needs besides the operands, 256-byte aligned. Present kernels keep
/// their partial sums on chip and need none; a caller that asks stays right if one comes to.
template <class T>
[[nodiscard]] std::size_t workspace_size(const ProjectionArguments<T>&, const DeviceInfo&) {
  return 0;
}

/// Computes the projection on `stream`. Allocates nothing, synchronises nothing, may be captured in
/// a graph and run on several streams at once. A Status other than ok means that nothing was
/// launched. `device` is `query_device<T>()` of the current device.
///
/// The same token gets the same bits whatever the other tokens are, for one kernel with one value
/// of `splits`; `pick` may change either with the number of tokens: force one where that matters.
template <class T>
[[nodiscard]] Status run(const ProjectionArguments<T>& args, const DeviceInfo& device,
                         void* workspace, std::size_t workspace_bytes, cudaStream_t stream);

}  // namespace bda::inline v0::cuda

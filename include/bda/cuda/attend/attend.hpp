#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "bda/core/status.hpp"
#include "bda/cuda/attend/arguments.hpp"
#include "bda/cuda/attend/config.hpp"

/// The built-in attention step, for plain C++. Bodies and kernels are in attend.cuh; one .cu file
/// of the program says BDA_INSTANTIATE_CUDA_ATTEND(T) for __half, __nv_bfloat16.
namespace bda::inline v0::cuda {

/// The kernel `run` will use: `args.force` or `pick`'s.
template <class T>
[[nodiscard]] AttendConfig config_for(const AttendArguments<T>& args, const DeviceInfo& device) {
  return args.force ? *args.force : pick(args.shape(), device);
}

/// Bytes of device memory `run` needs besides the operands, aligned to 256.
template <class T>
[[nodiscard]] std::size_t workspace_size(const AttendArguments<T>& args, const DeviceInfo& device) {
  const AttendConfig config = config_for(args, device);
  if (config.splits == 1) return 0;
  const AttendShape s = args.shape();
  return static_cast<std::size_t>(s.batch * s.queries * s.heads * config.splits * (s.v_width + 2)) *
         sizeof(float);
}

/// Attends on `stream`; allocates nothing, synchronises nothing, may be captured in a graph. A
/// Status other than ok means that nothing was launched (but where the second of two launches
/// failed). `device` is `query_device<T>()` of the current device.
template <class T>
[[nodiscard]] Status run(const AttendArguments<T>& args, const DeviceInfo& device, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream);

}  // namespace bda::inline v0::cuda

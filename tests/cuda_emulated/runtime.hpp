#pragma once

#include <cuda_runtime.h>

#include "machine.hpp"

/// What the launchers ask of the CUDA runtime, emulated; runtime.cpp has the functions that are no
/// templates.

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*)(Params...), cudaFuncAttribute, int bytes) {
  return bytes <= static_cast<int>(bda_emulated::kSharedBytes) ? cudaSuccess
                                                               : cudaErrorInvalidValue;
}

template <class... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*)(Params...)) {
  return cudaErrorNoDevice;
}

namespace bda_emulated {

template <class... Params>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                          const Params&... params) {
  unsigned ctas = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
      ctas = config->attrs[i].val.clusterDim.x;
  if (config->gridDim.x % ctas != 0 || config->blockDim.x > 1024 ||
      config->dynamicSmemBytes > kSharedBytes)
    return cudaErrorInvalidConfiguration;
  launch({config->gridDim.x, config->gridDim.y, config->gridDim.z}, ctas, config->blockDim.x,
         static_cast<std::uint32_t>(config->dynamicSmemBytes), [&] { kernel(params...); });
  return cudaSuccess;
}

}  // namespace bda_emulated
#define cudaLaunchKernelEx bda_emulated::launch_kernel

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "bda/cuda/ptx/memory.cuh"

// The functions of the CUDA runtime and driver that the launchers call.
namespace {

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                      const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const bool two_bytes =
      type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (rank > 4 || !two_bytes || swizzle != CU_TENSOR_MAP_SWIZZLE_128B || box[0] != 64)
    return CUDA_ERROR_NOT_SUPPORTED;
  if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  bda_emulated::TensorMap t{};
  t.data = static_cast<std::uint8_t*>(data);
  t.element_bytes = 2;
  for (cuuint32_t i = 0; i < 4; ++i) {
    t.extents[i] = i < rank ? static_cast<std::uint32_t>(extents[i]) : 1;
    t.box[i] = i < rank ? box[i] : 1;
    if (i > 0) t.strides[i - 1] = i < rank ? strides[i - 1] : 0;
    if (i < rank && steps[i] != 1) return CUDA_ERROR_NOT_SUPPORTED;
    if (t.extents[i] == 0 || t.box[i] == 0 || t.box[i] > 256 ||
        (i > 0 && t.strides[i - 1] % 16 != 0))
      return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(map, &t, sizeof(t));
  return CUDA_SUCCESS;
}

}  // namespace

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *entry = reinterpret_cast<void*>(&encode_tiled);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int*) { return cudaErrorNoDevice; }
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaErrorNoDevice; }
const char* cudaGetErrorString(cudaError_t) { return "an emulated device"; }

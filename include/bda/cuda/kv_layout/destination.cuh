#pragma once

#include <cstdint>

#include "bda/cuda/kv_layout/layout.hpp"
#include "bda/cuda/ptx/matrix.cuh"

/// KvOutput as the kernels see it.
namespace bda::inline v0::cuda {

/// Where row t of head h goes: data + row_offset(t) + h * head_stride, in elements.
struct KvDestination {
  void* data;
  std::int64_t token_stride, head_stride, page_stride;
  const std::int64_t* slots;  // [tokens], or null: row t is the t-th
  int page_size;
  int scale_stride;    // 0 or 1
  const float* scale;  // e4m3 alone: what is stored times the scale is the value; null for 1

  /// Negative for a token that is not stored.
  __device__ __forceinline__ std::int64_t row_offset(std::int64_t token) const {
    if (slots == nullptr) return token * token_stride;
    const std::int64_t slot = slots[token];
    if (slot < 0) return -1;
    return slot / page_size * page_stride + slot % page_size * token_stride;
  }
  __device__ __forceinline__ float inverse_scale(int head) const {
    return scale == nullptr ? 1.0f : 1.0f / scale[head * scale_stride];
  }
};

/// Eight 16-bit values times `scale` as e4m3.
template <class T>
__device__ __forceinline__ uint2 to_e4m3(uint4 values, float scale) {
  const std::uint32_t words[4] = {values.x, values.y, values.z, values.w};
  std::uint32_t packed[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = ptx::unpack_pair<T>(words[i]);
    packed[i] = ptx::pack_e4m3(v.x * scale, v.y * scale);
  }
  return make_uint2(packed[0] | packed[1] << 16, packed[2] | packed[3] << 16);
}

}  // namespace bda::inline v0::cuda

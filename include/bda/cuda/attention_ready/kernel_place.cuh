#pragma once

#include <cstdint>

#include "bda/cuda/kv_layout/destination.cuh"

/// Rows of keys or values from where a projection left them to where they belong.
namespace bda::inline v0::cuda {

template <class T>
struct PlaceParams {
  const T* rows;  // [tokens, heads, width], dense; null: they are in place, the rope part is not
  const T* rope;  // [tokens, rope_width] or null
  std::int64_t rope_stride;
  int heads, width, rope_width;
  KvDestination to;
};

/// One CTA a token; a thread moves 8 channels at a time, in fp32 one.
template <class T, bool kE4m3>
__global__ void __launch_bounds__(256) place_kernel(const PlaceParams<T> p) {
  constexpr int kVector = sizeof(T) == 2 ? 8 : 1;
  const std::int64_t token = blockIdx.x, offset = p.to.row_offset(token);
  if (offset < 0) return;
  const int first = p.rows != nullptr ? 0 : p.width / kVector;  // piece of each row
  const int pieces = (p.width + p.rope_width) / kVector - first;
  for (int i = static_cast<int>(threadIdx.x); i < p.heads * pieces; i += 256) {
    const int head = i / pieces, channel = (first + i % pieces) * kVector;
    const T* from = channel < p.width ? p.rows + (token * p.heads + head) * p.width + channel
                                      : p.rope + token * p.rope_stride + (channel - p.width);
    const std::int64_t at = offset + head * p.to.head_stride + channel;
    const float scale = kE4m3 ? p.to.inverse_scale(head) : 1.0f;
    if constexpr (sizeof(T) == 2) {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      if constexpr (kE4m3)
        *reinterpret_cast<uint2*>(static_cast<std::uint8_t*>(p.to.data) + at) =
            to_e4m3<T>(v, scale);
      else
        *reinterpret_cast<uint4*>(static_cast<T*>(p.to.data) + at) = v;
    } else if constexpr (kE4m3) {
      static_cast<std::uint8_t*>(p.to.data)[at] =
          static_cast<std::uint8_t>(ptx::pack_e4m3(*from * scale, 0.0f));
    } else {
      static_cast<T*>(p.to.data)[at] = *from;
    }
  }
}

}  // namespace bda::inline v0::cuda

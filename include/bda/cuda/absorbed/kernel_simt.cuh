#pragma once

#include <cstdint>

#include "bda/cuda/absorbed/config.hpp"
#include "bda/cuda/projection/packing.hpp"

namespace bda::inline v0::cuda {

template <class T>
struct AbsorbedSimtParams {
  const T* x;
  const T* coefficients;
  const T* bias;
  T* out;
  std::int64_t x_token_stride, x_head_stride, out_token_stride, out_head_stride;
  PackedCoefficients packing;
  int tokens;
  int basis_begin;
};

/// Any type, shape and device: a thread sums one output channel of 8 tokens in fp32.
/// grid: (output channels / 64, heads, tokens / 8).
template <class T, AbsorbedProduct kProduct>
__global__ void __launch_bounds__(64) absorbed_simt_kernel(const AbsorbedSimtParams<T> p) {
  constexpr bool kQuery = kProduct == AbsorbedProduct::kQuery;
  constexpr int kTokens = 8;
  const int width = static_cast<int>(p.packing.width), rest = static_cast<int>(p.packing.rest);
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.z) * kTokens;
  const int channel = static_cast<int>(blockIdx.x) * 64 + static_cast<int>(threadIdx.x);
  if (channel >= (kQuery ? rest + width : width)) return;
  const int tokens = min(kTokens, p.tokens - first);
  const T* const x = p.x + first * p.x_token_stride + head * p.x_head_stride;
  T* const out = p.out + first * p.out_token_stride + head * p.out_head_stride + channel;
  const std::int64_t column = static_cast<std::int64_t>(head) * width;
  float sum[kTokens] = {};
  if constexpr (kQuery) {
    const int within = channel - p.basis_begin;
    if (within >= 0 && within < width) {
      for (int t = 0; t < tokens; ++t)
        out[t * p.out_token_stride] = x[t * p.x_token_stride + within];
      return;
    }
    const int row = within < 0 ? channel : channel - width;
    for (int k = 0; k < width; ++k) {
      const float c = static_cast<float>(p.coefficients[p.packing.offset(row, column + k)]);
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
        if (t < tokens) sum[t] = fmaf(static_cast<float>(x[t * p.x_token_stride + k]), c, sum[t]);
    }
  } else {
    for (int k = 0; k < rest; ++k) {
      const float c = static_cast<float>(p.coefficients[p.packing.offset(k, column + channel)]);
      const int from = k < p.basis_begin ? k : k + width;
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
        if (t < tokens)
          sum[t] = fmaf(static_cast<float>(x[t * p.x_token_stride + from]), c, sum[t]);
    }
    const float bias = p.bias != nullptr ? static_cast<float>(p.bias[column + channel]) : 0.0f;
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < tokens)
        sum[t] += static_cast<float>(x[t * p.x_token_stride + p.basis_begin + channel]) + bias;
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t)
    if (t < tokens) out[t * p.out_token_stride] = static_cast<T>(sum[t]);
}

}  // namespace bda::inline v0::cuda

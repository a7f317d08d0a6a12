#pragma once

#include <cstdint>

namespace bda::inline v0::cuda {

struct SimtParams {
  const float* x;             // [tokens, kv_dim]
  const float* coefficients;  // [rest, heads * width]
  const float* bias;          // [heads, width] or null
  float* out;                 // [tokens, heads, width]
  std::int64_t x_stride;
  std::int64_t out_token_stride, out_head_stride;
  int tokens;
  int width;
  int rest;
  int columns;
  int basis_begin;
  int column_tiles;
};

/// fp32 on any device, any shape: tiles of 64 tokens x 64 columns, 256 threads of 4 x 4 each, 16
/// rest channels at a time through shared memory.
template <class T = float>  // a template, so that several translation units may hold it
__global__ void __launch_bounds__(256) simt_kernel(const SimtParams p) {
  constexpr int kDepth = 16;
  __shared__ T x_tile[kDepth][64 + 4];  // transposed; padded against bank conflicts
  __shared__ T c_tile[kDepth][64];
  const int t = static_cast<int>(threadIdx.x);
  const int first_token = static_cast<int>(blockIdx.x) / p.column_tiles * 64;
  const int first_column = static_cast<int>(blockIdx.x) % p.column_tiles * 64;
  const int row = t / 16 * 4, column = t % 16 * 4;

  T sum[4][4] = {};
  for (int k0 = 0; k0 < p.rest; k0 += kDepth) {
    for (int i = t; i < kDepth * 64; i += 256) {
      const int k = k0 + i % kDepth, token = first_token + i / kDepth;
      const int channel = k < p.basis_begin ? k : k + p.width;
      x_tile[i % kDepth][i / kDepth] =
          k < p.rest && token < p.tokens ? p.x[token * p.x_stride + channel] : T{0};
    }
    for (int i = t; i < kDepth * 64; i += 256) {
      const int k = k0 + i / 64, c = first_column + i % 64;
      c_tile[i / 64][i % 64] = k < p.rest && c < p.columns
                                   ? p.coefficients[static_cast<std::int64_t>(k) * p.columns + c]
                                   : T{0};
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sum[i][j] = fmaf(x_tile[k][row + i], c_tile[k][column + j], sum[i][j]);
    __syncthreads();
  }
  for (int j = 0; j < 4; ++j) {
    const int c = first_column + column + j;
    if (c >= p.columns) break;
    const int head = c / p.width, within = c % p.width;
    const T bias = p.bias != nullptr ? p.bias[c] : T{0};
    for (int i = 0; i < 4; ++i) {
      const int token = first_token + row + i;
      if (token >= p.tokens) break;
      p.out[token * p.out_token_stride + head * p.out_head_stride + within] =
          sum[i][j] + (p.x[token * p.x_stride + p.basis_begin + within] + bias);
    }
  }
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>

#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"

/// Everything in fp16 and bf16 that the sm_90a kernels do not take, on sm_80 and up: any width,
/// depth and slice in multiples of 8.
///
/// One CTA of four warps per tile of 128 tokens x 128 columns, 64 x 64 a warp; two CTAs share a
/// multiprocessor where its shared memory allows. Three buffers of 64 rest channels are filled by
/// cp.async two steps ahead of mma.sync. x is gathered around S while it is copied; C lies packed
/// and swizzled already.
namespace bda::inline v0::cuda {

template <class T>
struct Sm80Params {
  const T* x;             // [tokens, kv_dim]
  const T* coefficients;  // packed
  const T* bias;          // [heads, width] or null
  T* out;                 // [tokens, heads, width]
  std::int64_t x_stride;
  std::int64_t out_token_stride, out_head_stride;
  int tokens;
  int width;
  int rest;
  int chunks;         // of 64 rest channels, the last one padded
  int column_blocks;  // of 64 output columns, the last one padded
  int columns;
  int basis_begin;
  int row_tiles, column_tiles;
};

namespace sm80 {

constexpr int kThreads = 128;
constexpr int kBuffers = 3;
constexpr int kTileBytes = 128 * 128;  // 128 rows (or columns) x 64 channels
constexpr int kPitch = 68;             // floats between rows of the output tile: no bank conflicts
constexpr int kBandRows = 8;           // row tiles that pass over C together, for L2

struct Buffer {
  std::uint8_t x[kTileBytes];
  std::uint8_t coefficients[kTileBytes];
};
union Shared {
  Buffer ring[kBuffers];
  float output[4][64][kPitch];
};

}  // namespace sm80

template <class T>
__global__ void __launch_bounds__(128, 2) sm80_kernel(const __grid_constant__ Sm80Params<T> p) {
#if __CUDA_ARCH__ >= 800
  using namespace sm80;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);

  // Tiles in bands of kBandRows row tiles, rows fastest: what runs together shares its columns.
  const int band = static_cast<int>(blockIdx.x) / (kBandRows * p.column_tiles);
  const int in_band = static_cast<int>(blockIdx.x) % (kBandRows * p.column_tiles);
  const int band_rows = min(kBandRows, p.row_tiles - band * kBandRows);
  const int first_token = (band * kBandRows + in_band % band_rows) * 128;
  const int first_column = in_band / band_rows * 128;

  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();

  // ---- copying: thread t moves piece t % 8 of rows t / 8, + 16, ...
  const int piece = static_cast<int>(threadIdx.x) % 8, copy_row = static_cast<int>(threadIdx.x) / 8;
  const std::uint32_t swizzled = copy_row * 128 + ((piece ^ (copy_row & 7)) << 4);
  const auto fetch = [&](int chunk) {
    if (chunk < p.chunks) {
      Buffer& buffer = shared.ring[chunk % kBuffers];
      const int rest = chunk * 64 + piece * 8;
      const int channel = rest < p.basis_begin ? rest : rest + p.width;
      const std::uint32_t x = ptx::shared_address(buffer.x) + swizzled;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = first_token + copy_row + 16 * i;
        const bool valid = rest < p.rest && token < p.tokens;
        ptx::async_load_16(x + i * 16 * 128, valid ? p.x + token * p.x_stride + channel : p.x,
                           valid);
      }
      const std::uint32_t c = ptx::shared_address(buffer.coefficients) + threadIdx.x * 16;
#pragma unroll
      for (int i = 0; i < 8; ++i) {  // two packed tiles of 64 columns, as they lie
        const int block = first_column / 64 + i / 4;
        const bool valid = block < p.column_blocks;
        const T* source = p.coefficients +
                          (static_cast<std::int64_t>(block) * p.chunks + chunk) * 4096 +
                          (i % 4) * 1024 + threadIdx.x * 8;
        ptx::async_load_16(c + i * 2048, valid ? source : p.coefficients, valid);
      }
    }
    ptx::async_commit();  // also when empty, so that the count of groups stays even
  };

  // ---- multiplying: warp w has tokens 64 (w / 2) and columns 64 (w % 2) on
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int a_row = (warp / 2) * 64 + (lane & 15), a_piece = lane >> 4;
  const int b_row = (warp % 2) * 64 + (lane & 7) + ((lane >> 4) << 3), b_piece = (lane >> 3) & 1;
  float c[4][8][4] = {};
  fetch(0);
  fetch(1);
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    ptx::async_wait<1>();
    __syncthreads();  // this chunk has come, and nobody reads the buffer that fetch fills next
    fetch(chunk + 2);
    const Buffer& buffer = shared.ring[chunk % kBuffers];
    const std::uint32_t x = ptx::shared_address(buffer.x) + a_row * 128;
    const std::uint32_t w = ptx::shared_address(buffer.coefficients) + b_row * 128;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      std::uint32_t a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ptx::load_matrices(a[i], x + i * 16 * 128 + (((2 * k + a_piece) ^ (lane & 7)) << 4));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        ptx::load_matrices(b[j], w + j * 16 * 128 + (((2 * k + b_piece) ^ (lane & 7)) << 4));
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          ptx::mma_16x8x16<T>(c[i][j], a[i], b[j / 2][(j % 2) * 2], b[j / 2][(j % 2) * 2 + 1]);
    }
  }
  ptx::async_wait<0>();
  __syncthreads();

  // ---- epilogue: through shared memory in fp32, so that the basis, the bias and the output move
  // 16 bytes at a time; width is a multiple of 8, so that 8 columns lie in one head
  float(&tile)[64][kPitch] = shared.output[warp];
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(&tile[i * 16 + half * 8 + lane / 4][j * 8 + 2 * (lane & 3)]) =
            make_float2(c[i][j][2 * half], c[i][j][2 * half + 1]);
  __syncwarp();
  const int column = first_column + (warp % 2) * 64 + (lane & 7) * 8;
  if (column >= p.columns) return;
  const int head = column / p.width, within = column % p.width;
  float start[8] = {};
  if (p.bias != nullptr) {
    const uint4 v = *reinterpret_cast<const uint4*>(p.bias + column);
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      start[2 * e] = ptx::unpack_pair<T>(words[e]).x;
      start[2 * e + 1] = ptx::unpack_pair<T>(words[e]).y;
    }
  }
#pragma unroll 4
  for (int i = 0; i < 16; ++i) {
    const int row = i * 4 + lane / 8, token = first_token + (warp / 2) * 64 + row;
    if (token >= p.tokens) break;
    const uint4 v =
        *reinterpret_cast<const uint4*>(p.x + token * p.x_stride + p.basis_begin + within);
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
    const float* sum = &tile[row][(lane & 7) * 8];
    std::uint32_t result[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 basis = ptx::unpack_pair<T>(words[e]);
      result[e] = ptx::pack_pair<T>(sum[2 * e] + (basis.x + start[2 * e]),
                                    sum[2 * e + 1] + (basis.y + start[2 * e + 1]));
    }
    *reinterpret_cast<uint4*>(p.out + token * p.out_token_stride + head * p.out_head_stride +
                              within) = make_uint4(result[0], result[1], result[2], result[3]);
  }
#endif
}

}  // namespace bda::inline v0::cuda

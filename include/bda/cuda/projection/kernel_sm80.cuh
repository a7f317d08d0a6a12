#pragma once

#include <cstdint>

#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"

/// Everything in fp16 and bf16 that the sm_90a kernels do not take, on sm_80 and up: any width,
/// depth and slice in multiples of 8.
///
/// Persistent CTAs of four warps, two a multiprocessor where its shared memory allows, take every
/// gridDim.x-th tile of 128 tokens x 128 columns, 64 x 64 a warp. Three buffers are filled by
/// cp.async two steps ahead of mma.sync, across the edges of tiles: the next tile is on its way
/// while one is stored. A tile begins with the basis, from which the accumulators start; then come
/// steps of 64 rest channels. x is gathered around S while it is copied; C lies packed and swizzled
/// already.
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
  int row_tiles, column_tiles, tiles;
};

namespace sm80 {

constexpr int kThreads = 128;
constexpr int kBuffers = 3;
constexpr int kTileBytes = 128 * 128;  // 128 rows (or columns) x 64 channels
constexpr int kBandRows = 8;           // row tiles that pass over C together, for L2

struct Buffer {
  std::uint8_t x[kTileBytes];  // or the basis of columns 0 to 63
  std::uint8_t coefficients[kTileBytes];
};
struct Shared {
  Buffer ring[kBuffers];
};

/// Lane q of each four holds words 0 to 3; after it, word s of lane q is what word q of lane s was.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&w)[4]) {
  const unsigned lane = threadIdx.x & 3;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t got = __shfl_xor_sync(0xffffffffu, (lane & 1) ? w[i] : w[i + 1], 1);
    w[i] = (lane & 1) ? got : w[i];
    w[i + 1] = (lane & 1) ? w[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t got = __shfl_xor_sync(0xffffffffu, (lane & 2) ? w[i] : w[i + 2], 2);
    w[i] = (lane & 2) ? got : w[i];
    w[i + 2] = (lane & 2) ? w[i + 2] : got;
  }
}

}  // namespace sm80

template <class T>
__global__ void __launch_bounds__(128, 2) sm80_kernel(const __grid_constant__ Sm80Params<T> p) {
#if __CUDA_ARCH__ >= 800
  using namespace sm80;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const std::uint32_t ring = ptx::shared_address(shared_bytes);

  // Tiles in bands of kBandRows row tiles, rows fastest: what runs together shares its columns.
  struct Place {
    int token, column;
  };
  const auto place_of = [&](int tile) {
    const int band = tile / (kBandRows * p.column_tiles);
    const int in_band = tile % (kBandRows * p.column_tiles);
    const int band_rows = min(kBandRows, p.row_tiles - band * kBandRows);
    return Place{(band * kBandRows + in_band % band_rows) * 128, in_band / band_rows * 128};
  };

  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();

  // ---- copying: thread t moves piece t % 8 of rows t / 8, + 16, .. ; rows and columns beyond the
  // last are copies of the last, which nobody stores
  const int piece = static_cast<int>(threadIdx.x) % 8, copy_row = static_cast<int>(threadIdx.x) / 8;
  int fetch_tile = static_cast<int>(blockIdx.x), fetch_step = 0, fetch_buffer = 0;
  const T* fetch_rows;                // of x, of this thread
  int fetch_row_limit, fetch_column;  // the last i of row 16 i; of the tile
  const auto locate = [&] {
    const Place place = place_of(min(fetch_tile, p.tiles - 1));
    const int row = min(place.token + copy_row, p.tokens - 1);
    fetch_rows = p.x + row * p.x_stride;
    fetch_row_limit = (p.tokens - 1 - row) / 16;
    fetch_column = place.column;
  };
  locate();
  const auto fetch = [&] {
    if (fetch_tile < p.tiles) {
      const std::uint32_t target = ring + fetch_buffer * sizeof(Buffer);
      const std::uint32_t swizzled = target + copy_row * 128 + ((piece ^ (copy_row & 7)) << 4);
      const auto fetch_x = [&](std::uint32_t to, int channel, bool valid) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          ptx::async_load_16(to + i * 2048,
                             fetch_rows + min(i, fetch_row_limit) * 16 * p.x_stride + channel,
                             valid);
      };
      const int chunk = fetch_step - 1;
      if (chunk < 0) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = fetch_column + half * 64 + piece * 8;
          fetch_x(swizzled + half * kTileBytes,
                  p.basis_begin + min(column, p.columns - 8) % p.width, true);
        }
      } else {
        const int rest = chunk * 64 + piece * 8;
        const bool valid = rest < p.rest;
        fetch_x(swizzled, !valid ? 0 : rest < p.basis_begin ? rest : rest + p.width, valid);
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // two packed tiles of 64 columns, as they lie
          const int block = min(fetch_column / 64 + half, p.column_blocks - 1);
          const T* source = p.coefficients +
                            (static_cast<std::int64_t>(block) * p.chunks + chunk) * 4096 +
                            threadIdx.x * 8;
          const std::uint32_t c = target + kTileBytes + half * 8192 + threadIdx.x * 16;
#pragma unroll
          for (int i = 0; i < 4; ++i) ptx::async_load_16(c + i * 2048, source + i * 1024, true);
        }
      }
      if (++fetch_step > p.chunks) {
        fetch_step = 0;
        fetch_tile += static_cast<int>(gridDim.x);
        locate();
      }
    }
    if (++fetch_buffer == kBuffers) fetch_buffer = 0;
    ptx::async_commit();  // also when empty, so that the count of groups stays even
  };

  // ---- multiplying: warp w has tokens 64 (w / 2) and columns 64 (w % 2) on
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int a_row = (warp / 2) * 64 + (lane & 15), a_piece = lane >> 4;
  const int b_row = (warp % 2) * 64 + (lane & 7) + ((lane >> 4) << 3), b_piece = (lane >> 3) & 1;
  int buffer = 0;
  const auto next_buffer = [&] {
    ptx::async_wait<1>();
    __syncthreads();  // it has come, and nobody reads the buffer that is filled next
    const std::uint32_t address = ring + buffer * sizeof(Buffer);
    if (++buffer == kBuffers) buffer = 0;
    return address;
  };
  fetch();
  fetch();
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const Place place = place_of(tile);
    const int first_column = place.column + (warp % 2) * 64;
    float c[4][8][4];
    {
      const std::uint32_t basis = next_buffer() + (warp % 2) * kTileBytes + a_row * 128;
      fetch();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          std::uint32_t b[4];
          ptx::load_matrices(b, basis + i * 2048 + (((2 * j + a_piece) ^ (lane & 7)) << 4));
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float2 v = ptx::unpack_pair<T>(b[e]);
            c[i][2 * j + e / 2][2 * (e % 2)] = v.x;
            c[i][2 * j + e / 2][2 * (e % 2) + 1] = v.y;
          }
        }
      }
    }
    if (p.bias != nullptr) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int column = first_column + j * 8 + 2 * (lane & 3);
        if (column >= p.columns) break;
        const float2 v =
            ptx::unpack_pair<T>(__ldg(reinterpret_cast<const std::uint32_t*>(p.bias + column)));
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) c[i][j][e] += e % 2 == 0 ? v.x : v.y;
      }
    }
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const std::uint32_t address = next_buffer(), x = address + a_row * 128;
      const std::uint32_t w = address + kTileBytes + b_row * 128;
      std::uint32_t a[2][4][4], b[2][4][4];  // of these 16 channels and of the next
      const auto load = [&](int k) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ptx::load_matrices(a[k % 2][i], x + i * 2048 + (((2 * k + a_piece) ^ (lane & 7)) << 4));
#pragma unroll
        for (int j = 0; j < 4; ++j)
          ptx::load_matrices(b[k % 2][j], w + j * 2048 + (((2 * k + b_piece) ^ (lane & 7)) << 4));
      };
      load(0);
      fetch();  // while these are on their way
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k < 3) load(k + 1);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 8; ++j)
            ptx::mma_16x8x16<T>(c[i][j], a[k % 2][i], b[k % 2][j / 2][(j % 2) * 2],
                                b[k % 2][j / 2][(j % 2) * 2 + 1]);
      }
    }

    // ---- out, 16 bytes a lane: 8 columns, which lie in one head
    T* target[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int column = first_column + part * 32 + (lane & 3) * 8;
      target[part] = column < p.columns
                         ? p.out + column / p.width * p.out_head_stride + column % p.width
                         : nullptr;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = place.token + (warp / 2) * 64 + i * 16 + half * 8 + lane / 4;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          std::uint32_t words[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            words[j] =
                ptx::pack_pair<T>(c[i][4 * part + j][2 * half], c[i][4 * part + j][2 * half + 1]);
          transpose_quad(words);
          if (token < p.tokens && target[part] != nullptr)
            *reinterpret_cast<uint4*>(target[part] + token * p.out_token_stride) =
                make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
  }
  ptx::async_wait<0>();
#endif
}

}  // namespace bda::inline v0::cuda

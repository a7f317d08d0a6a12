#pragma once

#include <cstdint>

#include "bda/cuda/projection/sm80_tile.cuh"
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

namespace sm80 {

constexpr int kBuffers = 3;
constexpr int kBandRows = 8;  // row tiles that pass over C together, for L2

struct Buffer {
  std::uint8_t x[kTileBytes];  // or the basis of columns 0 to 63
  std::uint8_t coefficients[kTileBytes];
};
struct Shared {
  Buffer ring[kBuffers];
};

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

  // ---- multiplying
  Tile<T> t(static_cast<int>(threadIdx.x));
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
    const int first_column = place.column + (t.warp % 2) * 64;
    {
      const std::uint32_t basis = next_buffer() + (t.warp % 2) * kTileBytes + t.a_row * 128;
      fetch();
      t.start([&](int piece) { return basis + ((piece ^ (t.lane & 7)) << 4); });
    }
    if (p.bias != nullptr) t.add_bias(p.bias, first_column, p.columns);
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const std::uint32_t address = next_buffer();
      t.multiply(address, address + kTileBytes, fetch);
    }
    t.store(p, place.token, first_column);
  }
  ptx::async_wait<0>();
#endif
}

}  // namespace bda::inline v0::cuda

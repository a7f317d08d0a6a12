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
  const int thread = static_cast<int>(threadIdx.x), piece = thread % 8, copy_row = thread / 8;
  const int warp = thread / 32;  // copies columns 32 warp to 32 warp + 31
  const ColumnsCopy columns_copy(thread % 32);
  int fetch_tile = static_cast<int>(blockIdx.x), fetch_step = 0;
  std::uint32_t fetch_buffer = 0;     // bytes from the first
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
  const auto copy_x = [&](std::uint32_t to, int to_piece, int channel, bool valid) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      ptx::async_load_16(to + (copy_row + 16 * i) * 128 + (to_piece << 4),
                         fetch_rows + min(i, fetch_row_limit) * 16 * p.x_stride + channel, valid);
  };
  const auto copy_basis = [&](int half) {
    const int column = fetch_column + half * 64 + piece * 8;
    copy_x(ring + fetch_buffer + half * kTileBytes, basis_piece(piece, copy_row),
           p.basis_begin + p.width.remainder(min(column, p.columns - 8)), true);
  };
  // A step's copies, in two parts: the basis of 64 columns each, or x and C.
  const auto fetch_first = [&] {
    if (fetch_tile >= p.tiles) return;
    if (fetch_step == 0) {
      copy_basis(0);
    } else {
      const int rest = (fetch_step - 1) * 64 + piece * 8;
      const int channel = rest < p.basis_begin ? rest : rest + p.width.value();
      const bool valid = rest < p.rest;
      copy_x(ring + fetch_buffer, piece ^ (copy_row & 7), valid ? channel : 0, valid);
    }
  };
  const auto fetch_second = [&] {
    if (fetch_tile < p.tiles) {
      if (fetch_step == 0) {
        copy_basis(1);
      } else {
        const int block = min(fetch_column / 64 + warp / 2, p.column_blocks - 1);
        const T* source = p.coefficients +
                          (static_cast<std::int64_t>(block) * p.chunks + fetch_step - 1) * 4096 +
                          warp % 2 * 2048 + columns_copy.source;
        const std::uint32_t to =
            ring + fetch_buffer + kTileBytes + warp * 4096 + columns_copy.target;
#pragma unroll
        for (int half = 0; half < 2; ++half) ColumnsCopy::copy(half, to, source, true);
      }
      if (++fetch_step > p.chunks) {
        fetch_step = 0;
        fetch_tile += static_cast<int>(gridDim.x);
        locate();
      }
    }
    fetch_buffer =
        fetch_buffer == (kBuffers - 1) * sizeof(Buffer) ? 0 : fetch_buffer + sizeof(Buffer);
    ptx::async_commit();  // also when empty, so that the count of groups stays even
  };

  // ---- multiplying
  Tile<T, 64, 64> t(thread);
  std::uint32_t buffer = 0;
  const auto arrive = [&] {
    ptx::async_wait<1>();
    __syncthreads();  // the next buffer has come, and nobody reads the present one any more
  };
  const auto advance = [&] {
    buffer = buffer == (kBuffers - 1) * sizeof(Buffer) ? 0 : buffer + sizeof(Buffer);
  };
  for (int i = 0; i < 2; ++i) {
    fetch_first();
    fetch_second();
  }
  arrive();
  fetch_first();
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const Place place = place_of(tile);
    std::uint32_t basis_at[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int column = t.column + 32 * part;
      basis_at[part] = ring + buffer + column / 64 * kTileBytes + t.row * 128 +
                       (basis_piece(column % 64 / 8, t.row) << 4);
    }
    t.start(p, place.column, basis_at);
    fetch_second();
    arrive();
    advance();
    fetch_first();
    std::uint32_t x = ring + buffer + t.x_offset, c = ring + buffer + kTileBytes + t.c_offset;
    t.load(x, c);
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const auto nothing = [](int) {};
      t.template multiply<0>(x, c, nothing);
      t.template multiply<1>(x, c, [&](int i) {
        if (i == 1) fetch_second();
      });
      t.template multiply<2>(x, c, nothing);
      arrive();  // after the last chunk the next tile's basis: the loads from it are not used
      advance();
      x = ring + buffer + t.x_offset;
      c = ring + buffer + kTileBytes + t.c_offset;
      t.template multiply<3>(x, c, [&](int i) {
        if (i == 1) fetch_first();
      });
    }
    t.store(p, place.token, place.column);
  }
  ptx::async_wait<0>();
#endif
}

}  // namespace bda::inline v0::cuda

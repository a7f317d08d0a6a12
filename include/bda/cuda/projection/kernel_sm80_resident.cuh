#pragma once

#include <cstdint>

#include "bda/cuda/projection/sm80_tile.cuh"
#include "bda/cuda/ptx/memory.cuh"

/// sm80_kernel where a multiprocessor's shared memory holds 128 whole rows of x beside the rings: x
/// is read once for many heads, which halves what L2 delivers and what is written to shared memory.
///
/// A CTA has a range of tiles, rows slowest. Two groups of four warps share its rows of x; each
/// takes every second tile and has its own ring of C, so that one group's stores and starts lie
/// beside the other's products. Sums run in the order of sm80_kernel: the bits are the same.
namespace bda::inline v0::cuda {

namespace sm80_resident {

constexpr int kGroups = 2, kThreads = kGroups * sm80::kThreads;
constexpr int kSlots = 3;  // of 128 columns x 64 channels, per group

}  // namespace sm80_resident

template <class T>
__global__ void __launch_bounds__(256, 1)
    sm80_resident_kernel(const __grid_constant__ Sm80Params<T> p) {
#if __CUDA_ARCH__ >= 800
  using namespace sm80_resident;
  using sm80::kTileBytes;
  // x in blocks of 64 rest channels, the basis in blocks of 64, two rings:
  // detail::sm80_resident_shared_bytes counts the same.
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const std::uint32_t rows = ptx::shared_address(shared_bytes);
  const std::uint32_t basis = rows + p.chunks * kTileBytes;
  const std::uint32_t ring =
      basis + ((p.width + 63) / 64 + group * kSlots) * kTileBytes;  // of this group
  const auto sync_group = [&] {
    if (group == 0)
      ptx::barrier_sync<1>(128);
    else
      ptx::barrier_sync<2>(128);
  };

  const int share = p.tiles / static_cast<int>(gridDim.x);
  const int longer = p.tiles % static_cast<int>(gridDim.x);  // CTAs with a tile more
  const int cta = static_cast<int>(blockIdx.x);
  const int first = cta * share + min(cta, longer), last = first + share + (cta < longer ? 1 : 0);

  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();
  sm80::Tile<T> t(thread);
  for (int begin = first, end = 0; begin < last; begin = end) {
    const int row_tile = begin / p.column_tiles, token = row_tile * 128;
    end = min(last, (row_tile + 1) * p.column_tiles);
    __syncthreads();  // nobody reads the rows before any more

    {  // thread t moves piece t % 8 of rows t / 8, + 32, ..; rows beyond the last are copies of it
      const int piece = static_cast<int>(threadIdx.x) % 8;
      const int row = static_cast<int>(threadIdx.x) / 8;
      const T* source[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        source[i] = p.x + min(token + row + 32 * i, p.tokens - 1) * p.x_stride;
      const auto fetch = [&](std::uint32_t to, int channel, bool valid) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ptx::async_load_16(to + (row + 32 * i) * 128 + ((piece ^ (row & 7)) << 4),
                             source[i] + (valid ? channel : 0), valid);
      };
      for (int k = 0; k < p.chunks; ++k) {
        const int rest = 64 * k + 8 * piece;
        fetch(rows + k * kTileBytes, rest < p.basis_begin ? rest : rest + p.width, rest < p.rest);
      }
      for (int k = 0; 64 * k < p.width; ++k) {
        const int channel = 64 * k + 8 * piece;
        fetch(basis + k * kTileBytes, p.basis_begin + channel, channel < p.width);
      }
      ptx::async_commit();
    }

    int fetch_tile = begin + group, fetch_chunk = 0, fetch_slot = 0;
    const auto fetch = [&] {
      if (fetch_tile < end) {
        const int column_block = (fetch_tile - row_tile * p.column_tiles) * 2;
        const std::uint32_t target = ring + fetch_slot * kTileBytes + thread * 16;
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // two packed tiles of 64 columns, as they lie
          const int block = min(column_block + half, p.column_blocks - 1);
          const T* source = p.coefficients +
                            (static_cast<std::int64_t>(block) * p.chunks + fetch_chunk) * 4096 +
                            thread * 8;
#pragma unroll
          for (int i = 0; i < 4; ++i)
            ptx::async_load_16(target + half * 8192 + i * 2048, source + i * 1024, true);
        }
        if (++fetch_chunk == p.chunks) {
          fetch_chunk = 0;
          fetch_tile += kGroups;
        }
      }
      if (++fetch_slot == kSlots) fetch_slot = 0;
      ptx::async_commit();  // also when empty, so that the count of groups stays even
    };
    fetch();
    fetch();
    ptx::async_wait<2>();  // x, of every thread
    __syncthreads();

    int slot = 0;
    for (int tile = begin + group; tile < end; tile += kGroups) {
      const int first_column = (tile - row_tile * p.column_tiles) * 128 + (t.warp % 2) * 64;
      t.start([&](int piece) {
        const int channel = min(first_column + 8 * piece, p.columns - 8) % p.width;
        return basis + channel / 64 * kTileBytes + t.a_row * 128 +
               ((channel % 64 / 8 ^ (t.lane & 7)) << 4);
      });
      if (p.bias != nullptr) t.add_bias(p.bias, first_column, p.columns);
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        ptx::async_wait<1>();
        sync_group();  // it has come, and nobody reads the slot that is filled next
        t.multiply(rows + chunk * kTileBytes, ring + slot * kTileBytes, fetch);
        if (++slot == kSlots) slot = 0;
      }
      t.store(p, token, first_column);
    }
  }
  ptx::async_wait<0>();
#endif
}

}  // namespace bda::inline v0::cuda

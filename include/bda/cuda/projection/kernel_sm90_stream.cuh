#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/divisor.hpp"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Any depth on sm_90a: x and C stream through one ring, tiles of 128 tokens x 128 or 192 columns.
///
/// One persistent CTA per multiprocessor takes every gridDim.x-th tile. Roles:
///   producer, one thread (four for the opening): for each tile, first the basis channels of its
///     rows, then pairs of chunks, the tile's rows of x and its columns of C, 64 rest channels
///     each;
///   two consumer warpgroups, 64 tokens each: start the accumulators from the basis, multiply, and
///     store.
///
/// Within a tile the tensor cores hardly wait; what is lost is lost between two tiles, where both
/// warpgroups store and start anew, and all multiprocessors ask for their next chunks at once.
/// sm90_halves loses less there, with tiles that are too large for few tokens.
namespace bda::inline v0::cuda {

/// Of sm90_halves too.
struct Sm90StreamParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of 128 rows x 64 channels, 128-byte swizzle
  CUtensorMap out;           // [heads, width / 64, tokens, 64], boxes of 16 rows
  const void* coefficients;  // packed
  const void* bias;          // [heads, width] or null
  int tokens;
  int last_row;       // the most that a tile begins with: `last_row_of`
  int width_blocks;   // of 64 channels: 1 or 2
  int chunks;         // of 64 rest channels
  int column_blocks;  // of 64 output columns
  Divisor column_tiles;
  int tiles;
  int basis_begin;
};

namespace sm90_stream {

constexpr int kThreads = 384;
constexpr std::uint32_t kBlockBytes = 8192;  // 64 columns x 64 channels of C

constexpr std::uint32_t kRowsBytes = 128 * 128;   // 128 rows x 64 channels of x
constexpr std::uint32_t kOutputBytes = 16 * 128;  // of a warp, 16 tokens x 64 columns

template <int kColumns>
struct Shared {
  static constexpr int kBlocks = kColumns / 64;
  static constexpr std::uint32_t kSlotBytes = kRowsBytes + kBlocks * kBlockBytes;
  static constexpr int kSlots = (226 * 1024 - 8 * kBlocks * kOutputBytes) / kSlotBytes;
  static_assert(kBlocks * kBlockBytes >= kRowsBytes, "a slot must hold the basis of width 128");
  alignas(1024) std::uint8_t ring[kSlots][kSlotBytes];  // x, then C; or the basis, 64 channels each
  std::uint8_t output[8][kBlocks][kOutputBytes];
  RingBarriers<kSlots> barriers;
};

}  // namespace sm90_stream

template <class T, int kColumns>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_stream_kernel(const __grid_constant__ Sm90StreamParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_stream;
  using Layout = Shared<kColumns>;
  constexpr int kSlots = Layout::kSlots, kBlocks = Layout::kBlocks;
  constexpr std::uint32_t kSlotBytes = Layout::kSlotBytes;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Layout& shared = *reinterpret_cast<Layout*>(shared_bytes);
  const std::uint32_t ring = ptx::shared_address(shared.ring);
  const std::uint32_t full = ptx::shared_address(shared.barriers.full);
  const std::uint32_t empty = ptx::shared_address(shared.barriers.empty);

  ptx::allow_next_kernel();
  const int turn = ptx::warp_index();
  const bool leads = ptx::elect_one();
  const auto first_block_of = [&](int tile) { return p.column_tiles.remainder(tile) * kBlocks; };
  // The last rows of tiles overlap those before: boxes beyond the last token would take longer.
  const auto row_of = [&](int tile) {
    return min(p.column_tiles.quotient(tile) * 128, p.last_row);
  };

  if (turn < 4) {
    // ------------------------------------------------------------------ producer
    ptx::give_up_registers<24>();
    RingPosition<kSlots> at;
    const auto x_column = [&](int chunk) {  // of a chunk of rest channels: it steps over S
      return chunk * 64 < p.basis_begin ? chunk * 64 : (chunk + p.width_blocks) * 64;
    };
    const auto fetch_coefficients = [&](int slot, int first_block, int chunk) {
      // The last tile of a row may hold fewer columns; what its slots hold there is not stored.
      const int blocks = min(kBlocks, p.column_blocks - first_block);
      const std::uint32_t barrier = full + 8 * slot;
      ptx::mbarrier_arrive_expect_bytes(barrier, kRowsBytes + blocks * kBlockBytes);
      const std::uint8_t* source =
          static_cast<const std::uint8_t*>(p.coefficients) +
          (static_cast<std::int64_t>(first_block) * p.chunks + chunk) * kBlockBytes;
      for (int i = 0; i < blocks; ++i)
        ptx::bulk_load(ring + slot * kSlotBytes + kRowsBytes + i * kBlockBytes,
                       source + static_cast<std::int64_t>(i) * p.chunks * kBlockBytes, kBlockBytes,
                       barrier);
    };

    const auto fetch_basis = [&](int slot, int row) {
      ptx::mbarrier_arrive_expect_bytes(full + 8 * slot, p.width_blocks * kRowsBytes);
#pragma unroll 1
      for (int i = 0; i < p.width_blocks; ++i)
        ptx::tensor_load(ring + slot * kSlotBytes + i * kRowsBytes, p.x, full + 8 * slot,
                         p.basis_begin + 64 * i, row);
    };
    const auto fetch_rows = [&](int slot, int chunk, int row) {
      ptx::tensor_load(ring + slot * kSlotBytes, p.x, full + 8 * slot, x_column(chunk), row);
    };

    // The first round of slots needs no waiting, and four threads fill it, because one takes longer
    // to issue the copies than the first of them takes to arrive: one C, which does not depend on
    // the kernel before, the others x.
    if (turn == 0 && leads) {
#pragma unroll 1
      for (int slot = 0; slot < kSlots; ++slot) {
        ptx::mbarrier_init(full + 8 * slot, 1);
        ptx::mbarrier_init(empty + 8 * slot, 8);  // one arrival per consumer warp
      }
      ptx::fence_mbarrier_init();
    }
    __syncwarp();
    __syncthreads();
    if (!leads) return;
    const int tile0 = static_cast<int>(blockIdx.x);
    const int opening = min(kSlots - 1, p.chunks);
    if (turn > 0) {
      const int row = row_of(tile0);
      ptx::wait_for_previous_kernel();
      if (turn == 3) {
        fetch_basis(0, row);
        ptx::prefetch_tensor_map(p.out);
      } else {
#pragma unroll 1
        for (int chunk = turn - 1; chunk < opening; chunk += 2) fetch_rows(1 + chunk, chunk, row);
      }
      return;
    }
    const int opening_block = first_block_of(tile0);
#pragma unroll 1
    for (int chunk = 0; chunk < opening; ++chunk)
      fetch_coefficients(1 + chunk, opening_block, chunk);
    ptx::wait_for_previous_kernel();
    for (int i = 0; i < 1 + opening; ++i) at.advance();

    for (int tile = tile0; tile < p.tiles; tile += gridDim.x) {
      const int row = row_of(tile), first_block = first_block_of(tile);
      if (tile != tile0) {
        ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
        fetch_basis(at.slot, row);
        at.advance();
      }
      for (int chunk = tile == tile0 ? opening : 0; chunk < p.chunks; ++chunk) {
        ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
        fetch_coefficients(at.slot, first_block, chunk);
        fetch_rows(at.slot, chunk, row);
        at.advance();
      }
    }
  } else {
    // ------------------------------------------------------------------ consumers
    if (turn == 4 && leads) ptx::prefetch_tensor_map(p.x);
    __syncthreads();
    ptx::claim_registers<240>();
    const int group = turn / 4 - 1, warp = turn & 3, lane = static_cast<int>(threadIdx.x) & 31;
    RingPosition<kSlots> at;
    const auto release = [&](int slot) {
      if (leads) ptx::mbarrier_arrive(empty + 8 * slot);
    };
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
      const int first_block = first_block_of(tile);
      ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
      const std::uint32_t basis_slot = ring + at.slot * kSlotBytes;
      const int row = row_of(tile) + group * 64 + warp * 16;
      const int blocks = min(kBlocks, p.column_blocks - first_block);
      // Fragment addresses: row l % 16 of the warp's 16, 16-byte piece 2 j + l / 16 under the
      // swizzle; the 16 columns j of a block of 64 are reached by XOR with 32 j.
      const std::uint32_t fragment = (lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4);
      float c[kColumns / 2];
      // Every second block of columns starts from the same 64 basis channels.
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int within = (first_block + second) & (p.width_blocks - 1);
        const std::uint32_t rows =
            basis_slot + within * kRowsBytes + (group * 4 + warp) * 2048 + fragment;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          std::uint32_t basis[4];
          ptx::load_matrices(basis, rows ^ (j << 5));
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float2 v = ptx::unpack_pair<T>(basis[e]);
#pragma unroll
            for (int i = second; i < kBlocks; i += 2) {
              c[32 * i + 8 * j + 2 * e] = v.x;
              c[32 * i + 8 * j + 2 * e + 1] = v.y;
            }
          }
        }
      }
      if (p.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) {
          const int column = first_block * 64 + 8 * j + 2 * (lane & 3);
          if (j / 8 >= blocks) break;
          const float2 v = ptx::unpack_pair<T>(__ldg(
              reinterpret_cast<const std::uint32_t*>(static_cast<const T*>(p.bias) + column)));
          c[4 * j] += v.x;
          c[4 * j + 1] += v.y;
          c[4 * j + 2] += v.x;
          c[4 * j + 3] += v.y;
        }
      }
      const auto multiply = [&] {
        ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
        ptx::wgmma_fence();
        const std::uint32_t slot = ring + at.slot * kSlotBytes;
        const std::uint64_t x = ptx::matrix_descriptor(slot + group * 8192);
        const std::uint64_t b = ptx::matrix_descriptor(slot + kRowsBytes);
#pragma unroll
        for (int k = 0; k < 4; ++k) ptx::wgmma<T, kColumns>(c, x + 2 * k, b + 2 * k, 1);
        ptx::wgmma_commit();
      };
      // The first chunk stands before the loop: within it the compiler must see only wgmma touch
      // the accumulators, or it serialises them. The basis is released only once these products are
      // issued: they take its values, so that no ldmatrix can still be on its way.
      int before = at.slot;  // the slot last read from, not yet released
      at.advance();
      multiply();
      release(before);
      before = at.slot;
      at.advance();
      for (int chunk = 1; chunk < p.chunks; ++chunk) {
        multiply();
        ptx::wgmma_wait<1>();
        release(before);
        before = at.slot;
        at.advance();
      }
      ptx::wgmma_wait<0>();
      release(before);
      ptx::delivered(c);
      const auto buffer = [&](int i) {
        return ptx::shared_address(shared.output[group * 4 + warp][i]);
      };
      if (leads) ptx::bulk_wait_read<0>();  // what was in the buffers has left
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kBlocks; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* v = &c[32 * i + 8 * j];
          store_rounded<T>((buffer(i) + fragment) ^ (j << 5), v);
        }
      ptx::fence_proxy_async();
      __syncwarp();
      if (leads && row < p.tokens) {
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
          const int block = first_block + i;
          if (i < blocks)
            ptx::tensor_store(p.out, buffer(i), 0, row, block & (p.width_blocks - 1),
                              block >> (p.width_blocks - 1), ptx::kEvictFirst);
        }
        ptx::bulk_commit();
      }
    }
    if (leads) ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/pipeline/tile_order.hpp"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Any depth on sm_90a where tiles of 256 tokens x 128 columns, or of 128 x 192, cover the output
/// in one wave: C comes as fast as memory gives it, and for one row of tiles once.
///
/// Roles:
///   producers, one thread for C and one for each half of the rows of x, each with its own ring. C
///     is asked for only `ahead` chunks ahead of what has arrived: what L2 holds queues behind what
///     it has to ask memory for, so that with all of C asked for x would come last;
///   two consumer warpgroups, half of the tokens each: start the accumulators from the basis,
///     multiply chunk by chunk as C arrives, and store. The second begins some chunks later, so
///     that the first one's stores lie beside the second one's products. With 192 columns, where
///     the way from L2 bounds, its rows of x are also asked for later, or it would catch up.
namespace bda::inline v0::cuda {

struct Sm90WaveParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of half a tile's rows x 64 channels
  CUtensorMap out;           // [heads, width / 64, tokens, 64], boxes of 16 rows
  const void* coefficients;  // packed
  const void* bias;          // [heads, width] or null
  TileOrder order;           // of the tiles
  int tokens;
  int width_blocks;   // of 64 channels: 1 or 2
  int chunks;         // of 64 rest channels
  int column_blocks;  // of 64 output columns
  int basis_begin;
  int ahead;  // chunks of C: see above
};

namespace sm90_wave {

constexpr int kThreads = 384;
constexpr std::uint32_t kBlockBytes = 8192;  // 64 columns x 64 channels of C, 64 rows of x or out

template <int kTokens, int kColumns>
struct Shared {
  static constexpr int kBlocks = kColumns / 64;  // of 64 columns
  static constexpr int kParts = kTokens / 128;   // of 64 rows, of a warpgroup
  static constexpr int kColumnSlots = 6, kRowSlots = kParts == 2 ? 4 : 5;
  static constexpr int kLag = kParts == 2 ? 2 : 4;  // chunks between the warpgroups
  // The second one's rows are asked for when C has arrived this many chunks further on; 0: at once.
  static constexpr int kHold = kParts == 2 ? 0 : 2;
  static constexpr std::uint32_t kColumnBytes = kBlocks * kBlockBytes;  // of a chunk
  static constexpr std::uint32_t kRowBytes = kParts * kBlockBytes;      // of a chunk and half
  static_assert(kRowSlots * kRowBytes >= kParts * kBlocks * kBlockBytes, "the output's place");
  alignas(1024) std::uint8_t columns[kColumnSlots][kColumnBytes];
  std::uint8_t rows[2][kRowSlots][kRowBytes];  // then the output
  RingBarriers<kColumnSlots> columns_barriers;
  RingBarriers<kRowSlots> rows_barriers[2];
};

}  // namespace sm90_wave

/// grid: of the order.
template <class T, int kTokens, int kColumns>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_wave_kernel(const __grid_constant__ Sm90WaveParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_wave;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  using Layout = Shared<kTokens, kColumns>;
  constexpr int kBlocks = Layout::kBlocks, kParts = Layout::kParts, kHalf = kTokens / 2;
  constexpr int kColumnSlots = Layout::kColumnSlots, kRowSlots = Layout::kRowSlots;
  constexpr std::uint32_t kColumnBytes = Layout::kColumnBytes, kRowBytes = Layout::kRowBytes;
  Layout& shared = *reinterpret_cast<Layout*>(shared_bytes);
  const TileOrder::Place tile = p.order.at(blockIdx.x, blockIdx.y);
  const int first_block = tile.column * kBlocks, token = tile.row * kTokens;
  const int halves = p.tokens - token > kHalf ? 2 : 1;  // of the tile that have rows
  // The last rows overlap those before: boxes beyond the last token would take longer.
  const auto row_of = [&](int half) { return min(token + kHalf * half, max(p.tokens - kHalf, 0)); };
  const std::uint32_t columns = ptx::shared_address(shared.columns);
  const std::uint32_t columns_full = ptx::shared_address(shared.columns_barriers.full);
  const std::uint32_t columns_empty = ptx::shared_address(shared.columns_barriers.empty);

  ptx::allow_next_kernel();
  const int warp_index = ptx::warp_index();
  const bool leads = ptx::elect_one();
  if (warp_index < 3) {
    // ------------------------------------------------------------------ producers
    const int half = warp_index - 1;  // of the rows; C's producer comes before both
    const int blocks = min(kBlocks, p.column_blocks - first_block);
    const std::uint8_t* source = static_cast<const std::uint8_t*>(p.coefficients) +
                                 static_cast<std::int64_t>(first_block) * p.chunks * kBlockBytes;
    const auto fetch_columns = [&](int slot) {  // the next chunk
      const std::uint32_t barrier = columns_full + 8 * slot;
      ptx::mbarrier_arrive_expect_bytes(barrier, blocks * kBlockBytes);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i)
        if (i < blocks)
          ptx::bulk_load(columns + slot * kColumnBytes + i * kBlockBytes,
                         source + static_cast<std::int64_t>(i) * p.chunks * kBlockBytes,
                         kBlockBytes, barrier, ptx::kEvictFirst);
      source += kBlockBytes;
    };
    const int at = max(half, 0);
    const std::uint32_t rows = ptx::shared_address(shared.rows[at]);
    const std::uint32_t full = ptx::shared_address(shared.rows_barriers[at].full);
    const std::uint32_t empty = ptx::shared_address(shared.rows_barriers[at].empty);
    const auto fetch_rows = [&](int slot, int item) {  // the basis, then the rest
      int channel = p.basis_begin + 64 * item;
      if (item >= p.width_blocks) {
        channel = 64 * (item - p.width_blocks);
        if (channel >= p.basis_begin) channel += 64 * p.width_blocks;
      }
      ptx::mbarrier_arrive_expect_bytes(full + 8 * slot, kRowBytes);
      ptx::tensor_load(rows + slot * kRowBytes, p.x, full + 8 * slot, channel, row_of(half));
    };
    const int items = p.width_blocks + p.chunks;
    const bool held = Layout::kHold > 0 && half == 1;
    const int opening = half < 0 ? min(p.ahead, p.chunks)
                        : held   ? p.width_blocks
                                 : min(kRowSlots, items);
    if (leads) {
      if (half < 0) {
#pragma unroll 1
        for (int slot = 0; slot < kColumnSlots; ++slot) {
          ptx::mbarrier_init(columns_full + 8 * slot, 1);
          ptx::mbarrier_init(columns_empty + 8 * slot, 4 * halves);
        }
        ptx::fence_mbarrier_init();
#pragma unroll 1
        for (int slot = 0; slot < opening; ++slot) fetch_columns(slot);
      } else if (half < halves) {
#pragma unroll 1
        for (int slot = 0; slot < kRowSlots; ++slot) {
          ptx::mbarrier_init(full + 8 * slot, 1);
          ptx::mbarrier_init(empty + 8 * slot, 4);
        }
        ptx::fence_mbarrier_init();
        ptx::wait_for_previous_kernel();
#pragma unroll 1
        for (int item = 0; item < opening; ++item) fetch_rows(item, item);
      }
    }
    __syncwarp();
    __syncthreads();
    if (!leads || half >= halves) return;
    if (half < 0) {
      RingPosition<kColumnSlots> arrived, at;
      for (int i = 0; i < opening; ++i) at.advance();
#pragma unroll 1
      for (int chunk = opening; chunk < p.chunks; ++chunk) {
        ptx::mbarrier_wait(columns_full + 8 * arrived.slot, arrived.parity);
        arrived.advance();
        ptx::mbarrier_wait(columns_empty + 8 * at.slot, at.parity ^ 1);
        fetch_columns(at.slot);
        at.advance();
      }
    } else {
      RingPosition<kRowSlots> at;
      for (int i = 0; i < opening; ++i) at.advance();
      RingPosition<kColumnSlots> arrived;
      int waited = 0;  // chunks of C
#pragma unroll 1
      for (int item = opening; item < items; ++item) {
        if (held)
          for (; waited < min(item - p.width_blocks + 1 + Layout::kHold, p.chunks); ++waited) {
            ptx::mbarrier_wait(columns_full + 8 * arrived.slot, arrived.parity);
            arrived.advance();
          }
        ptx::mbarrier_wait(empty + 8 * at.slot, at.parity ^ 1);
        fetch_rows(at.slot, item);
        at.advance();
      }
    }
    return;
  }

  // -------------------------------------------------------------------- consumers
  if (leads && warp_index == 3) ptx::prefetch_tensor_map(p.x);
  if (leads && warp_index == 4) ptx::prefetch_tensor_map(p.out);
  __syncthreads();
  const int half = warp_index / 4 - 1, warp = warp_index & 3;
  if (half < 0 || half >= halves) return;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  // Fragment addresses: row l % 16 of the warp's 16, 16-byte piece 2 j + l / 16 under the swizzle;
  // the 16 columns j of a block of 64 are reached by XOR with 32 j.
  const std::uint32_t fragment = (lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4);
  const std::uint32_t rows = ptx::shared_address(shared.rows[half]);
  const std::uint32_t full = ptx::shared_address(shared.rows_barriers[half].full);
  const std::uint32_t empty = ptx::shared_address(shared.rows_barriers[half].empty);

  // The accumulators, of rows 64 m + 16 warp on of this half, start from the basis (and bias).
  float c[kParts][kColumns / 2];
  RingPosition<kRowSlots> at;
  std::uint32_t loaded = 0;
  for (int i = 0; i < p.width_blocks; ++i) ptx::mbarrier_wait(full + 8 * i, 0);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const std::uint32_t block =
        rows + ((first_block + i) & (p.width_blocks - 1)) * kRowBytes + fragment;
#pragma unroll
    for (int m = 0; m < kParts; ++m)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t basis[4];
        ptx::load_matrices(basis, (block + (64 * m + 16 * warp) * 128) ^ (j << 5));
        loaded ^= basis[0];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float2 v = ptx::unpack_pair<T>(basis[e]);
          c[m][32 * i + 8 * j + 2 * e] = v.x;
          c[m][32 * i + 8 * j + 2 * e + 1] = v.y;
        }
      }
  }
  // An arrival can overtake ldmatrix: its address takes a part, which is zero, of every result.
  loaded &= static_cast<std::uint32_t>(p.tokens) >> 31;
  __syncwarp();
  for (int i = 0; i < p.width_blocks; ++i) {
    if (lane == 0) ptx::mbarrier_arrive(empty + 8 * i + loaded);
    at.advance();
  }
  if (p.bias != nullptr) {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      if (first_block + j / 8 >= p.column_blocks) break;
      const int column = first_block * 64 + 8 * j + 2 * (lane & 3);
      const float2 v = ptx::unpack_pair<T>(
          __ldg(reinterpret_cast<const std::uint32_t*>(static_cast<const T*>(p.bias) + column)));
#pragma unroll
      for (int m = 0; m < kParts; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) c[m][4 * j + e] += e % 2 == 0 ? v.x : v.y;
    }
  }

  RingPosition<kColumnSlots> columns_at;
  int rows_before = 0, columns_before = 0;  // the slots last read from, not yet released
  const auto multiply = [&] {
    ptx::mbarrier_wait(columns_full + 8 * columns_at.slot, columns_at.parity);
    ptx::mbarrier_wait(full + 8 * at.slot, at.parity);
    ptx::wgmma_fence();
    const std::uint64_t x = ptx::matrix_descriptor(rows + at.slot * kRowBytes);
    const std::uint64_t w = ptx::matrix_descriptor(columns + columns_at.slot * kColumnBytes);
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int m = 0; m < kParts; ++m)
        ptx::wgmma<T, kColumns>(c[m], x + 512 * m + 2 * k, w + 2 * k, 1);
    ptx::wgmma_commit();
  };
  const auto advance = [&] {
    rows_before = at.slot;
    columns_before = columns_at.slot;
    at.advance();
    columns_at.advance();
  };
  const int lag = halves == 2 ? min(Layout::kLag, p.chunks - 1) : 0;
  if (lag > 0 && half == 1) ptx::barrier_sync<3>(256);
  multiply();  // before the loop, so that within it only wgmma touches the accumulators
  for (int chunk = 1; chunk < p.chunks; ++chunk) {
    if (lag == chunk && half == 0) ptx::barrier_arrive<3>(256);
    advance();
    multiply();
    ptx::wgmma_wait<1>();
    if (lane == 0) {
      ptx::mbarrier_arrive(empty + 8 * rows_before);
      ptx::mbarrier_arrive(columns_empty + 8 * columns_before);
    }
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int m = 0; m < kParts; ++m) ptx::delivered(c[m]);
  // All four warps' products are done: the slots of their rows take the output.
  if (half == 0)
    ptx::barrier_sync<1>(128);
  else
    ptx::barrier_sync<2>(128);
#pragma unroll
  for (int m = 0; m < kParts; ++m) {
    const std::uint32_t buffer = rows + (4 * m + warp) * (kBlocks * 2048);
    const int row = row_of(half) + 64 * m + 16 * warp;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* v = &c[m][32 * i + 8 * j];
        store_rounded<T>((buffer + i * 2048 + fragment) ^ (j << 5), v);
      }
    ptx::fence_proxy_async();
    __syncwarp();
    if (leads && row < p.tokens) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        const int block = first_block + i;
        if (block < p.column_blocks)
          ptx::tensor_store(p.out, buffer + i * 2048, 0, row, block & (p.width_blocks - 1),
                            block >> (p.width_blocks - 1), ptx::kEvictFirst);
      }
      ptx::bulk_commit();
    }
  }
  if (leads) ptx::bulk_wait_read<0>();
#endif
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/pipeline/tile_order.hpp"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Up to 384 rest channels on sm_90a where tiles of 128 or 256 tokens x 128 columns cover the
/// output in one wave: x of a tile stays in shared memory, and its two blocks of 64 columns take
/// turns, so that the first is stored while C of the second still comes.
///
/// Roles:
///   producers, one thread for C, first of one block and then of the other, and one for each part
///     (up to 128 rows) of x. C runs only a few blocks ahead: what L2 holds queues behind what it
///     has to ask memory for, so that with more in flight x would come late. With one tile of 256
///     tokens, whose ring is short, a little more of it is asked into L2;
///   a consumer warpgroup for each turn and part: starts its accumulators from the basis,
///     multiplies chunk by chunk as C arrives, and stores.
///
/// The operands are swapped: 64 output columns are the rows of wgmma, the tokens its columns. Every
/// block of C has barriers of its own: a warpgroup of the second turn starts to wait long before,
/// and the parity of a slot used again would tell it nothing.
namespace bda::inline v0::cuda {

struct Sm90TurnsParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of `rows` rows x 64 channels
  CUtensorMap out;           // [heads, width / 64, tokens, 64], boxes of `rows` rows
  const void* coefficients;  // packed
  const void* bias;          // [heads, width] or null
  TileOrder order;           // of the tiles
  int tokens;
  int rows;           // of a part: a multiple of 8, at most 128
  int width_blocks;   // of 64 channels: 1 or 2
  int chunks;         // of 64 rest channels, at most kMaxChunks
  int column_blocks;  // of 64 output columns
  int basis_begin;
  int opening;   // blocks of C that are asked for before x, at most kAhead
  int prefetch;  // blocks of C that are asked into L2 before their turn
};

namespace sm90_turns {

constexpr int kMaxChunks = 6;
constexpr std::uint32_t kBlockBytes = 8192;      // 64 columns x 64 channels of C
constexpr std::uint32_t kPartBytes = 128 * 128;  // 128 rows x 64 channels of x, x 64 columns of out

template <int kTokens>
struct Shared {
  static constexpr int kParts = kTokens / 128;
  static constexpr int kThreads = 128 + 256 * kParts;
  // Of x: the basis comes first, and gives its slots to the last chunks where there are too few.
  static constexpr int kRowSlots = kParts == 2 ? 6 : 8;
  static constexpr int kColumnSlots = kParts == 2 ? 4 : 2 * kMaxChunks;
  static constexpr int kAhead = kParts == 2 ? 4 : 5;  // blocks of C in flight
  alignas(1024) std::uint8_t rows[kRowSlots][kParts][kPartBytes];
  std::uint8_t columns[kColumnSlots][kBlockBytes];
  std::uint64_t columns_full[2 * kMaxChunks], columns_empty[2 * kMaxChunks];  // of every block
  std::uint64_t rows_full[kParts][2 + kMaxChunks], basis_empty[kParts][2];
};

}  // namespace sm90_turns

/// grid: of the order; a tile is kTokens / 128 parts x 128 columns.
template <class T, int kTokens>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(sm90_turns::Shared<kTokens>::kThreads), 1)
    sm90_turns_kernel(const __grid_constant__ Sm90TurnsParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_turns;
  using Layout = Shared<kTokens>;
  constexpr int kParts = Layout::kParts, kRowSlots = Layout::kRowSlots;
  constexpr int kColumnSlots = Layout::kColumnSlots, kAhead = Layout::kAhead;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Layout& shared = *reinterpret_cast<Layout*>(shared_bytes);
  const TileOrder::Place tile = p.order.at(blockIdx.x, blockIdx.y);
  const int first_block = tile.column * 2, token = tile.row * (kParts * p.rows);
  const int parts = kParts == 2 && p.tokens - token > p.rows ? 2 : 1;  // of the tile with rows
  const int turns = min(2, p.column_blocks - first_block);
  const std::uint32_t columns = ptx::shared_address(shared.columns);
  const std::uint32_t columns_full = ptx::shared_address(shared.columns_full);
  const std::uint32_t columns_empty = ptx::shared_address(shared.columns_empty);
  const std::uint32_t rows = ptx::shared_address(shared.rows);
  const auto row_slot = [&](int item, int part) {  // the basis, then the chunks
    const int slot = item < kRowSlots ? item : item - kRowSlots;
    return rows + (slot * kParts + part) * kPartBytes;
  };

  ptx::allow_next_kernel();
  const int warp_index = ptx::warp_index();
  const bool leads = ptx::elect_one();
  if (warp_index < 1 + kParts) {
    // ------------------------------------------------------------------ producers
    const int part = warp_index - 1;  // of x; C's producer comes before both
    const int blocks = turns * p.chunks, items = p.width_blocks + p.chunks;
    const std::uint8_t* const source =
        static_cast<const std::uint8_t*>(p.coefficients) +
        static_cast<std::int64_t>(first_block * p.chunks) * kBlockBytes;
    const auto fetch_columns = [&](int block) {
      const std::uint32_t barrier = columns_full + 8 * block;
      ptx::mbarrier_arrive_expect_bytes(barrier, kBlockBytes);
      ptx::bulk_load(columns + block % kColumnSlots * kBlockBytes, source + block * kBlockBytes,
                     kBlockBytes, barrier, ptx::kEvictFirst);
      if (p.prefetch > 0 && block + p.prefetch < blocks)
        ptx::bulk_prefetch(source + (block + p.prefetch) * kBlockBytes, kBlockBytes);
    };
    const std::uint32_t full = ptx::shared_address(shared.rows_full[max(part, 0)]);
    const std::uint32_t empty = ptx::shared_address(shared.basis_empty[max(part, 0)]);
    const auto fetch_rows = [&](int item) {
      int channel = p.basis_begin + 64 * item;
      if (item >= p.width_blocks) {
        channel = 64 * (item - p.width_blocks);
        if (channel >= p.basis_begin) channel += 64 * p.width_blocks;
      }
      ptx::mbarrier_arrive_expect_bytes(full + 8 * item, p.rows * 128);
      ptx::tensor_load(row_slot(item, part), p.x, full + 8 * item, channel, token + p.rows * part);
    };
    const int opening = part < 0 ? min(p.opening, blocks) : min(kRowSlots, items);
    if (leads) {
      if (part < 0) {
        // No barrier before the first copies that these can do without.
#pragma unroll 1
        for (int block = 0; block < opening; ++block)
          ptx::mbarrier_init(columns_full + 8 * block, 1);
        ptx::fence_mbarrier_init();
#pragma unroll 1
        for (int block = 0; block < opening; ++block) fetch_columns(block);
#pragma unroll 1
        for (int block = opening; block < blocks; ++block)
          ptx::mbarrier_init(columns_full + 8 * block, 1);
#pragma unroll 1
        for (int block = 0; block < blocks; ++block)
          ptx::mbarrier_init(columns_empty + 8 * block, 4 * parts);
        ptx::fence_mbarrier_init();
      } else if (part < parts) {
#pragma unroll 1
        for (int item = 0; item < items; ++item) ptx::mbarrier_init(full + 8 * item, 1);
        ptx::mbarrier_init(empty, p.width_blocks == 2 ? 4 : 4 * turns);
        ptx::mbarrier_init(empty + 8, 4);
        ptx::fence_mbarrier_init();
        ptx::wait_for_previous_kernel();
        // The second turn's basis has time: it comes after the first two chunks.
        const bool later = p.width_blocks == 2 && opening > 3;
#pragma unroll 1
        for (int i = 0; i < opening; ++i)
          fetch_rows(later && i > 0 && i <= 3 ? (i < 3 ? i + 1 : 1) : i);
      }
    }
    __syncwarp();
    __syncthreads();
    if (!leads || part >= parts) return;
    if (part < 0) {
#pragma unroll 1
      for (int block = opening; block < blocks; ++block) {
        if (block >= kAhead && kAhead < kColumnSlots)
          ptx::mbarrier_wait(columns_full + 8 * (block - kAhead), 0);
        if (block >= kColumnSlots)
          ptx::mbarrier_wait(columns_empty + 8 * (block - kColumnSlots), 0);
        fetch_columns(block);
      }
    } else {
#pragma unroll 1
      for (int item = opening; item < items; ++item) {
        ptx::mbarrier_wait(empty + 8 * (item - kRowSlots), 0);
        fetch_rows(item);
      }
    }
    return;
  }

  // -------------------------------------------------------------------- consumers
  if (leads && warp_index == 3) {
    ptx::prefetch_tensor_map(p.x);
    ptx::prefetch_tensor_map(p.out);
  }
  __syncthreads();
  const int group = warp_index / 4 - 1, warp = warp_index & 3;
  const int turn = group / kParts, part = group % kParts;
  if (group < 0 || part >= parts || turn >= turns) return;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int block = first_block + turn;
  const std::uint32_t rows_full = ptx::shared_address(shared.rows_full[part]);
  // Rows of the accumulators are columns of the output, so that fragments of the basis and of the
  // output are transposed: row l % 8 of tokens 8 (l / 16), 16-byte piece 2 warp + l / 8 % 2 under
  // the swizzle; the next 16 tokens are 2048 bytes on.
  const std::uint32_t fragment =
      ((lane >> 4) * 8 + (lane & 7)) * 128 + (((2 * warp + ((lane >> 3) & 1)) ^ (lane & 7)) << 4);
  float c[64];
  const int basis_item = block & (p.width_blocks - 1);
  ptx::mbarrier_wait(rows_full + 8 * basis_item, 0);
  std::uint32_t loaded = 0;
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    std::uint32_t basis[4];
    ptx::load_matrices_transposed(basis, row_slot(basis_item, part) + fragment + q * 2048);
    loaded ^= basis[0];
    unpack_fragment<T>(basis, &c[8 * q]);
  }
  // An arrival can overtake ldmatrix: its address takes a part, which is zero, of every result.
  loaded &= static_cast<std::uint32_t>(p.tokens) >> 31;
  __syncwarp();
  if (leads)
    ptx::mbarrier_arrive(ptx::shared_address(shared.basis_empty[part]) + 8 * basis_item + loaded);
  if (p.bias != nullptr) {
    const T* bias = static_cast<const T*>(p.bias) + block * 64 + warp * 16 + (lane >> 2);
    const float low = static_cast<float>(bias[0]), high = static_cast<float>(bias[8]);
#pragma unroll
    for (int j = 0; j < 64; ++j) c[j] += (j & 2) == 0 ? low : high;
  }

  // Barriers: of the warpgroup alone; of both turns of a part, once for each that waits for the
  // other.
  const int alone = 1 + group, first_chunk_done = 5 + part, first_turn_done = 7 + part;
  const int first = turn * p.chunks;
  const auto multiply = [&](int chunk) {
    ptx::mbarrier_wait(rows_full + 8 * (p.width_blocks + chunk), 0);
    ptx::mbarrier_wait(columns_full + 8 * (first + chunk), 0);
    ptx::wgmma_fence();
    const std::uint64_t x = ptx::matrix_descriptor(row_slot(p.width_blocks + chunk, part));
    const std::uint64_t w =
        ptx::matrix_descriptor(columns + (first + chunk) % kColumnSlots * kBlockBytes);
#pragma unroll
    for (int k = 0; k < 4; ++k) ptx::wgmma<T, 128>(c, w + 2 * k, x + 2 * k, 1);
    ptx::wgmma_commit();
  };
  const auto release = [&](int chunk) {
    if (leads) ptx::mbarrier_arrive(columns_empty + 8 * (first + chunk));
  };
  multiply(0);
  if (turn == 1) {
    ptx::wgmma_wait<0>();
    ptx::barrier_arrive(first_chunk_done, 256);
  }
  for (int chunk = 1; chunk < p.chunks; ++chunk) {
    multiply(chunk);
    ptx::wgmma_wait<1>();
    release(chunk - 1);
  }
  ptx::wgmma_wait<0>();
  release(p.chunks - 1);
  ptx::delivered(c);

  // The first turn's output takes the place of chunk 0, which the second has multiplied by then;
  // the second's that of chunk 1, which the first has.
  if (turns == 1) {
    ptx::barrier_sync(alone, 128);
  } else if (turn == 0) {
    ptx::barrier_arrive(first_turn_done, 256);
    ptx::barrier_sync(first_chunk_done, 256);
  } else {
    ptx::barrier_sync(first_turn_done, 256);
  }
  const std::uint32_t buffer = row_slot(p.width_blocks + turn, part);
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    const float* v = &c[8 * q];
    store_rounded_transposed<T>(buffer + fragment + q * 2048, v);
  }
  ptx::fence_proxy_async();
  ptx::barrier_sync(alone, 128);
  if (warp == 0 && leads) {
    ptx::tensor_store(p.out, buffer, 0, token + p.rows * part, block & (p.width_blocks - 1),
                      block >> (p.width_blocks - 1), ptx::kEvictFirst);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda

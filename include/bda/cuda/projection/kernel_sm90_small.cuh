#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/divisor.hpp"
#include "bda/cuda/pipeline/even_ranges.cuh"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/pipeline/tile_order.hpp"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Few tokens on sm_90a, from decode to where one tile for every multiprocessor covers the output:
/// the time is that of bringing C and x once, so every CTA asks for all it needs at once, or for as
/// much of it as fits, and multiplies chunk by chunk as it arrives.
///
/// The operands are swapped: 64 output columns are the rows of wgmma, the tokens its columns, so
/// that 16 tokens cost a quarter of 64. One warpgroup per 64 columns, and four warps that fill the
/// slots by turns: a single thread takes longer to issue the copies than the first of them takes to
/// arrive. Where there are fewer slices than multiprocessors a cluster of `splits` CTAs shares the
/// rest channels: each one sends its partial sums to the CTA that stores those tokens, which adds
/// them in rank order: the result does not depend on timing.
namespace bda::inline v0::cuda {

struct Sm90SmallParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of `rows` rows x 64 channels
  CUtensorMap out;           // [heads, width / 64, tokens, 64], boxes of 16 rows, or `rows`
  const void* coefficients;  // packed
  const void* bias;          // [heads, width] or null
  int width_blocks;          // of 64 channels: 1 or 2
  int chunks;                // of 64 rest channels, all splits together
  int column_blocks;         // of 64 output columns
  Divisor splits;
  EvenRanges split_chunks;  // of each split
  int slots;                // chunks in flight
  int rows;                 // of a tile, at most kTokens: a multiple of 8, or of 16 where kSplit
  int basis_begin;
  int ahead;             // chunks of C that are asked for before x
  TileOrder order;       // where kSmallIsOrdered
  std::uint64_t policy;  // of L2 for C
};

/// Whether CTAs take their tiles in a TileOrder. Tiles of fewer tokens have few rows, and no time
/// for arithmetic: they take their place from the grid.
template <int kTokens>
constexpr bool kSmallIsOrdered = kTokens > 64;

/// grid: (splits, those of the order), without one (splits, token tiles, column tiles);
/// clusters of (splits, 1, 1); 128 threads for each of the kGroups blocks of 64 columns of the
/// tile, and 128. kSplit: splits > 1.
///
/// An ordinary launch pays for all that comes before the first copy, at 8 instructions a line of a
/// cold instruction cache: so the producers come first, and nothing there divides.
template <class T, int kTokens, int kGroups, bool kSplit>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(128 * kGroups + 128), 1)
    sm90_small_kernel(const __grid_constant__ Sm90SmallParams p) {
#if BDA_SM90A_CODE
  constexpr std::uint32_t kBlockBytes = 8192;          // 64 columns x 64 channels of C
  constexpr std::uint32_t kRowsBytes = kTokens * 128;  // kTokens rows x 64 channels of x
  constexpr int kPairs = kTokens / 16;                 // of 8-token fragments; rank r stores every
                                                       // splits-th pair from r on
  constexpr std::uint32_t kPairBytes = 16 * 64 * 4;    // fp32, of one warpgroup
  // Whether the basis, which every product waits for, leaves ahead of the barrier of all warps: not
  // behind so many rows of x and columns of C ((1536,128,12), 1024 tokens: 9.5 to 9.0 us).
  constexpr bool kBasisFirst = kGroups == 2;
  TileOrder::Place tile{static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  if constexpr (kSmallIsOrdered<kTokens>) tile = p.order.at(blockIdx.y, blockIdx.z);
  const int first_block = tile.column * kGroups, token = tile.row * p.rows;
  const int rank = kSplit ? static_cast<int>(blockIdx.x) : 0;
  const int splits = kSplit ? p.splits.value() : 1;
  const EvenRanges::Range split = p.split_chunks.at(rank);
  const int first_chunk = kSplit ? split.begin : 0;
  const int chunks = kSplit ? split.end - split.begin : p.chunks;

  // Shared memory: slots of C, slots of x, the basis and in its place the output (a warp writes
  // where only it has read), partial sums [splits - 1][pairs], barriers. detail::small_shared_bytes
  // counts the same.
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const std::uint32_t coefficients = ptx::shared_address(shared_bytes);
  const std::uint32_t rows = coefficients + p.slots * kGroups * kBlockBytes;
  const std::uint32_t basis = rows + p.slots * kRowsBytes;
  const std::uint32_t partials = basis + kGroups * kRowsBytes;
  const std::uint32_t sender_bytes =
      kSplit ? p.splits.quotient(kPairs + splits - 1) * kGroups * kPairBytes : 0;
  const std::uint32_t full = partials + (splits - 1) * sender_bytes;
  const std::uint32_t empty = full + 8 * p.slots;
  const std::uint32_t basis_full = empty + 8 * p.slots, partials_full = basis_full + 8;

  ptx::allow_next_kernel();
  const int warp_index = ptx::warp_index(), turn = warp_index - 4 * kGroups;
  const bool leads = ptx::elect_one();
  const int ahead = min(min(chunks, p.slots), p.ahead);
  const auto fetch_coefficients = [&](int chunk, int slot) {
    const int blocks = min(kGroups, p.column_blocks - first_block);
    const std::uint8_t* source =
        static_cast<const std::uint8_t*>(p.coefficients) +
        (static_cast<std::int64_t>(first_block) * p.chunks + first_chunk + chunk) * kBlockBytes;
    ptx::mbarrier_arrive_expect_bytes(full + 8 * slot, blocks * kBlockBytes + p.rows * 128);
    const auto load = [&](int group, const std::uint8_t* from) {
      ptx::bulk_load(coefficients + (slot * kGroups + group) * kBlockBytes, from, kBlockBytes,
                     full + 8 * slot, p.policy);
    };
    load(0, source);
    if (kGroups == 2 && blocks == 2)
      load(1, source + p.chunks * static_cast<std::int64_t>(kBlockBytes));
  };
  const auto fetch_basis = [&] {
    ptx::mbarrier_arrive_expect_bytes(basis_full, kGroups * p.rows * 128);
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      ptx::tensor_load(basis + g * kRowsBytes, p.x, basis_full,
                       p.basis_begin + 64 * ((first_block + g) & (p.width_blocks - 1)), token);
  };
  if (turn >= 0) {
    if (leads) {
      // A slot always belongs to the same warp, which also makes its barriers.
#pragma unroll 1
      for (int slot = turn; slot < p.slots; slot += 4) {
        ptx::mbarrier_init(full + 8 * slot, 1);
        ptx::mbarrier_init(empty + 8 * slot, 4 * kGroups);
      }
      if (turn == 3) {
        ptx::mbarrier_init(basis_full, 1);
        if (kSplit) ptx::mbarrier_init(partials_full, 1);
      }
      ptx::fence_mbarrier_init();
      if (kSplit && turn == 3) {
        const int pairs = rank < kPairs ? p.splits.quotient(kPairs - 1 - rank) + 1 : 0;
        ptx::mbarrier_arrive_expect_bytes(partials_full,
                                          (splits - 1) * pairs * kGroups * kPairBytes);
      }
      // C does not depend on the kernel before, x and out do: some of C goes ahead
      // (detail::small_ahead), the rest together with x, so that the products keep pace.
#pragma unroll 1
      for (int slot = turn; slot < ahead; slot += 4) fetch_coefficients(slot, slot);
      if (kBasisFirst && turn == 3) {
        ptx::wait_for_previous_kernel();
        fetch_basis();
      }
    }
    __syncwarp();
  } else if (warp_index == 0 && leads) {
    ptx::prefetch_tensor_map(p.x);
  }
  __syncthreads();
  if (kSplit) ptx::cluster_arrive();  // the others may send from here on

  if (turn >= 0) {
    // ------------------------------------------------------------------ producers
    if (leads) {
      ptx::wait_for_previous_kernel();
      if (!kBasisFirst && turn == 3) fetch_basis();
      // A parity can only tell the latest round of a slot.
      for (int first = 0, round = 0; first < chunks; first += p.slots, ++round)
#pragma unroll 1
        for (int slot = turn; slot < min(p.slots, chunks - first); slot += 4) {
          const int chunk = first + slot;
          if (round > 0) ptx::mbarrier_wait(empty + 8 * slot, (round - 1) & 1);
          if (chunk >= ahead) fetch_coefficients(chunk, slot);
          int channel = 64 * (first_chunk + chunk);
          if (channel >= p.basis_begin) channel += 64 * p.width_blocks;
          ptx::tensor_load(rows + slot * kRowsBytes, p.x, full + 8 * slot, channel, token);
        }
      if (turn == 0) ptx::prefetch_tensor_map(p.out);
    }
    __syncwarp();
    if (kSplit) ptx::cluster_wait();
    return;
  }

  // -------------------------------------------------------------------- consumers
  // ---- the accumulator starts from the basis (in rank 0): c[4 i + ...] is 8 tokens, two columns
  const int group = kGroups == 1 ? 0 : warp_index / 4, block = first_block + group;
  const int t = static_cast<int>(threadIdx.x) & 127, warp = warp_index & 3, lane = t & 31;
  // Piece of 8 columns and token row of this lane's address in a pair of 8-token fragments.
  const int column_piece = warp * 2 + ((lane >> 3) & 1), pair_row = 8 * (lane >> 4) + (lane & 7);
  const auto fragment = [&](std::uint32_t base, int pair) {
    return base + group * kRowsBytes + (16 * pair + pair_row) * 128 +
           ((column_piece ^ (lane & 7)) << 4);
  };
  float c[kTokens / 2];
  ptx::mbarrier_wait(basis_full, 0);
  float bias[2] = {0, 0};
  if (p.bias != nullptr && block < p.column_blocks) {
    const int column = block * 64 + warp * 16 + lane / 4;
    bias[0] = static_cast<float>(static_cast<const T*>(p.bias)[column]);
    bias[1] = static_cast<float>(static_cast<const T*>(p.bias)[column + 8]);
  }
#pragma unroll
  for (int pair = 0; pair < kTokens / 16; ++pair) {
    std::uint32_t b[4];
    ptx::load_matrices_transposed(b, fragment(basis, pair));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 v = ptx::unpack_pair<T>(b[e]);
      c[8 * pair + 2 * e] = rank == 0 ? v.x + bias[e & 1] : 0.0f;
      c[8 * pair + 2 * e + 1] = rank == 0 ? v.y + bias[e & 1] : 0.0f;
    }
  }

  int slot = 0;
  std::uint32_t parity = 0;
  const auto multiply = [&] {
    ptx::mbarrier_wait(full + 8 * slot, parity);
    ptx::wgmma_fence();
    const std::uint64_t w =
        ptx::matrix_descriptor(coefficients + (slot * kGroups + group) * kBlockBytes);
    const std::uint64_t x = ptx::matrix_descriptor(rows + slot * kRowsBytes);
#pragma unroll
    for (int k = 0; k < 4; ++k) ptx::wgmma<T, kTokens>(c, w + 2 * k, x + 2 * k, 1);
    ptx::wgmma_commit();
  };
  multiply();  // before the loop, so that within it only wgmma touches the accumulator
  for (int i = 1; i < chunks; ++i) {
    const int before = slot;
    if (++slot == p.slots) {
      slot = 0;
      parity ^= 1;
    }
    multiply();
    ptx::wgmma_wait<1>();
    if (lane == 0) ptx::mbarrier_arrive(empty + 8 * before);
  }
  ptx::wgmma_wait<0>();
  ptx::delivered(c);

  // ---- partial sums of the cluster to where they are stored
  if constexpr (kSplit) {
    ptx::cluster_wait();
    const std::uint32_t mine = partials + (group * 128 + t) * 16;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int owner = p.splits.remainder(pair);
      if (owner == rank) continue;
      const int sender = rank < owner ? rank : rank - 1;  // among the owner's senders
      const std::uint32_t target = ptx::address_in_cluster(
          mine + sender * sender_bytes + p.splits.quotient(pair) * (kGroups * kPairBytes), owner);
      const std::uint32_t barrier = ptx::address_in_cluster(partials_full, owner);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* v = &c[8 * pair + 4 * i];
        ptx::store_async(target + i * kGroups * (kPairBytes / 2), v[0], v[1], v[2], v[3], barrier);
      }
    }
    if (rank >= kPairs) return;  // nothing to store here
    ptx::mbarrier_wait(partials_full, 0);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (p.splits.remainder(pair) != rank) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const own = &c[8 * pair + 4 * i];
        float4 sum = make_float4(0, 0, 0, 0);
        for (int r = 0; r < splits; ++r) {
          const int sender = r < rank ? r : r - 1;
          const float4 v = r == rank
                               ? make_float4(own[0], own[1], own[2], own[3])
                               : ptx::load_floats(mine + sender * sender_bytes +
                                                  p.splits.quotient(pair) * (kGroups * kPairBytes) +
                                                  i * kGroups * (kPairBytes / 2));
          sum.x += v.x;
          sum.y += v.y;
          sum.z += v.z;
          sum.w += v.w;
        }
        own[0] = sum.x;
        own[1] = sum.y;
        own[2] = sum.z;
        own[3] = sum.w;
      }
    }
  }

  // ---- to shared memory as rows of tokens, and out
#pragma unroll
  for (int pair = 0; pair < kTokens / 16; ++pair) {
    if (kSplit && p.splits.remainder(pair) != rank) continue;
    const float* v = &c[8 * pair];
    store_rounded_transposed<T>(fragment(basis, pair), v);
  }
  ptx::fence_proxy_async();
  if (group == 0)
    ptx::barrier_sync<1>(128);
  else
    ptx::barrier_sync<2>(128);
  if (t == 0 && block < p.column_blocks) {
    const int half = block & (p.width_blocks - 1), head = block >> (p.width_blocks - 1);
    for (int pair = rank; pair < (kSplit ? p.rows / 16 : 1); pair += splits)
      ptx::tensor_store(p.out, basis + group * kRowsBytes + pair * 2048, 0, token + 16 * pair, half,
                        head, ptx::kEvictFirst);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Few tokens on sm_90a (decode): the time is that of streaming C once, so every CTA asks for its
/// whole slice of C at once and multiplies chunk by chunk as it arrives.
///
/// The operands are swapped: 64 output columns are the rows of wgmma, the tokens its columns, so
/// that 16 tokens cost a quarter of 64. One warpgroup per 64 columns. Where there are fewer slices
/// than multiprocessors a cluster of `splits` CTAs shares the rest channels: each one sends its
/// partial sums to the CTA that stores those tokens, which adds them in rank order: the result does
/// not depend on timing.
namespace bda::inline v0::cuda {

struct Sm90SmallParams {
  CUtensorMap x;             // [tokens, kv_dim], boxes of kTokens rows x 64 channels, 128-byte swizzle
  CUtensorMap out;           // [heads, width / 64, tokens, 64], boxes of 16 rows
  const void* coefficients;  // packed
  const void* bias;          // [heads, width] or null
  int width;
  int chunks;         // of 64 rest channels, all splits together
  int column_blocks;  // of 64 output columns
  int splits;
  int basis_begin;
  bool dependent;  // launched beside the kernel before
};

/// grid: (splits, column tiles, token tiles), clusters of (splits, 1, 1); 128 threads for each 64
/// columns of the tile.
template <class T, int kTokens>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(256), 1)
    sm90_small_kernel(const __grid_constant__ Sm90SmallParams p) {
#if BDA_SM90A_CODE
  constexpr std::uint32_t kBlockBytes = 8192;         // 64 columns x 64 channels of C
  constexpr std::uint32_t kRowsBytes = kTokens * 128;  // kTokens rows x 64 channels of x
  const int groups = static_cast<int>(blockDim.x) / 128, group = static_cast<int>(threadIdx.x) / 128;
  const int first_block = static_cast<int>(blockIdx.y) * groups, block = first_block + group;
  const int token = static_cast<int>(blockIdx.z) * kTokens;
  const int rank = static_cast<int>(blockIdx.x), width_blocks = p.width / 64;
  const int most = (p.chunks + p.splits - 1) / p.splits;  // chunks of the first rank
  const int first_chunk = rank * p.chunks / p.splits;
  const int chunks = (rank + 1) * p.chunks / p.splits - first_chunk;

  // Shared memory: C [most], x [most], basis, output, partial sums [splits - 1][pairs], barriers.
  // detail::small_shared_bytes counts the same. A pair is two 8-token fragments, 16 tokens; rank r
  // stores every splits-th pair from r on.
  constexpr int kPairs = kTokens / 16;
  constexpr std::uint32_t kPairBytes = 16 * 64 * 4;  // fp32, of one warpgroup
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const std::uint32_t coefficients = ptx::shared_address(shared_bytes);
  const std::uint32_t rows = coefficients + most * groups * kBlockBytes;
  const std::uint32_t basis = rows + most * kRowsBytes;
  const std::uint32_t output = basis + groups * kRowsBytes;
  const std::uint32_t partials = output + groups * kRowsBytes;
  const std::uint32_t most_pairs = (kPairs + p.splits - 1) / p.splits;
  const std::uint32_t sender_bytes = most_pairs * groups * kPairBytes;
  const std::uint32_t barriers = partials + (p.splits - 1) * sender_bytes;  // one a chunk, and two
  const std::uint32_t basis_full = barriers + 8 * most, partials_full = basis_full + 8;

  ptx::allow_next_kernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < chunks; ++i) ptx::mbarrier_init(barriers + 8 * i, 1);
    ptx::mbarrier_init(basis_full, 1);
    ptx::mbarrier_init(partials_full, 1);
    ptx::fence_mbarrier_init();
    const int pairs = rank < kPairs ? (kPairs - 1 - rank) / p.splits + 1 : 0;
    ptx::mbarrier_arrive_expect_bytes(partials_full,
                                      (p.splits - 1) * pairs * groups * kPairBytes);
  }
  __syncthreads();
  if (p.splits > 1) ptx::cluster_arrive();  // the others may send from here on

  // One thread of each warp issues the copies of its chunks: a single one would take longer than
  // the first bytes need to arrive.
  const int issuer = static_cast<int>(threadIdx.x) / 32, issuers = 4 * groups;
  if (threadIdx.x % 32 == 0) {
    const auto fetch_coefficients = [&](int i) {
      for (int g = 0; g < min(groups, p.column_blocks - first_block); ++g)
        ptx::bulk_load(coefficients + (i * groups + g) * kBlockBytes,
                       static_cast<const std::uint8_t*>(p.coefficients) +
                           (static_cast<std::int64_t>(first_block + g) * p.chunks + first_chunk +
                            i) * kBlockBytes,
                       kBlockBytes, barriers + 8 * i);
    };
    for (int i = issuer; i < chunks; i += issuers) {
      ptx::mbarrier_arrive_expect_bytes(
          barriers + 8 * i, min(groups, p.column_blocks - first_block) * kBlockBytes + kRowsBytes);
      // C does not depend on the kernel before, x and out do. Where there is one to wait for, C
      // goes ahead; else x does, so that the products keep pace with C.
      if (p.dependent) fetch_coefficients(i);
    }
    ptx::wait_for_previous_kernel();
    if (issuer == issuers - 1) {
      ptx::mbarrier_arrive_expect_bytes(basis_full, groups * kRowsBytes);
      for (int g = 0; g < groups; ++g)
        ptx::tensor_load(basis + g * kRowsBytes, p.x, basis_full,
                         p.basis_begin + 64 * ((first_block + g) % width_blocks), token);
    }
    for (int i = issuer; i < chunks; i += issuers) {
      const int channel = 64 * (first_chunk + i);
      ptx::tensor_load(rows + i * kRowsBytes, p.x, barriers + 8 * i,
                       channel < p.basis_begin ? channel : channel + p.width, token);
      if (!p.dependent) fetch_coefficients(i);
    }
    if (issuer == 0) ptx::prefetch_tensor_map(p.out);
  }
  __syncwarp();

  // ---- the accumulator starts from the basis (in rank 0): c[4 i + ...] is 8 tokens, two columns
  const int t = static_cast<int>(threadIdx.x) & 127, warp = t >> 5, lane = t & 31;
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

  const auto multiply = [&](int i) {
    ptx::mbarrier_wait(barriers + 8 * i, 0);
    ptx::wgmma_fence();
    const std::uint64_t w =
        ptx::matrix_descriptor(coefficients + (i * groups + group) * kBlockBytes);
    const std::uint64_t x = ptx::matrix_descriptor(rows + i * kRowsBytes);
#pragma unroll
    for (int k = 0; k < 4; ++k) ptx::wgmma<T, kTokens>(c, w + 2 * k, x + 2 * k, 1);
    ptx::wgmma_commit();
  };
  multiply(0);  // before the loop, so that within it only wgmma touches the accumulator
  for (int i = 1; i < chunks; ++i) multiply(i);
  ptx::wgmma_wait<0>();
  ptx::delivered(c);

  // ---- partial sums of the cluster to where they are stored
  if (p.splits > 1) {
    ptx::cluster_wait();
    const std::uint32_t mine = partials + (group * 128 + t) * 16;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int owner = pair % p.splits;
      if (owner == rank) continue;
      const int sender = rank < owner ? rank : rank - 1;  // among the owner's senders
      const std::uint32_t target = ptx::address_in_cluster(
          mine + sender * sender_bytes + pair / p.splits * (groups * kPairBytes), owner);
      const std::uint32_t barrier = ptx::address_in_cluster(partials_full, owner);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* v = &c[8 * pair + 4 * i];
        ptx::store_async(target + i * groups * (kPairBytes / 2), v[0], v[1], v[2], v[3], barrier);
      }
    }
    if (rank >= kPairs) return;  // nothing to store here
    ptx::mbarrier_wait(partials_full, 0);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair % p.splits != rank) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const own = &c[8 * pair + 4 * i];
        float4 sum = make_float4(0, 0, 0, 0);
        for (int r = 0; r < p.splits; ++r) {
          const int sender = r < rank ? r : r - 1;
          const float4 v =
              r == rank ? make_float4(own[0], own[1], own[2], own[3])
                        : ptx::load_floats(mine + sender * sender_bytes +
                                           pair / p.splits * (groups * kPairBytes) +
                                           i * groups * (kPairBytes / 2));
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
    if (pair % p.splits != rank) continue;
    const float* v = &c[8 * pair];
    ptx::store_matrices_transposed(fragment(output, pair), ptx::pack_pair<T>(v[0], v[1]),
                                   ptx::pack_pair<T>(v[2], v[3]), ptx::pack_pair<T>(v[4], v[5]),
                                   ptx::pack_pair<T>(v[6], v[7]));
  }
  ptx::fence_proxy_async();
  __syncthreads();
  if (t == 0 && block < p.column_blocks) {
    for (int pair = rank; pair < kTokens / 16; pair += p.splits)
      ptx::tensor_store(p.out, output + group * kRowsBytes + pair * 2048, 0, token + 16 * pair,
                        block % width_blocks, block / width_blocks, ptx::policy_evict_first());
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda

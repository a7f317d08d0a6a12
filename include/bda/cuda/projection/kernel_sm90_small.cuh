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
/// than multiprocessors a cluster of `splits` CTAs shares the rest channels and adds its partial
/// sums through distributed shared memory, always in rank order: the result does not depend on
/// timing.
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

  // Shared memory: [most] of C, [most] of x, later overlaid by the partial sums; basis; output;
  // barriers. detail::small_shared_bytes counts the same.
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const std::uint32_t coefficients = ptx::shared_address(shared_bytes);
  const std::uint32_t rows = coefficients + most * groups * kBlockBytes;
  const std::uint32_t operands = most * (groups * kBlockBytes + kRowsBytes);
  const std::uint32_t partials = groups * kTokens * 64 * 4;
  const std::uint32_t basis = coefficients + max(operands, partials);
  const std::uint32_t output = basis + groups * kRowsBytes;
  const std::uint32_t barriers = output + groups * kRowsBytes;  // one a chunk, then the basis'
  const std::uint32_t basis_full = barriers + 8 * most;

  ptx::allow_next_kernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < chunks; ++i) ptx::mbarrier_init(barriers + 8 * i, 1);
    ptx::mbarrier_init(basis_full, 1);
    ptx::fence_mbarrier_init();
    ptx::fence_proxy_async();
    const int blocks = min(groups, p.column_blocks - first_block);
    for (int i = 0; i < chunks; ++i) {
      ptx::mbarrier_arrive_expect_bytes(barriers + 8 * i, blocks * kBlockBytes + kRowsBytes);
      for (int g = 0; g < blocks; ++g)
        ptx::bulk_load(coefficients + (i * groups + g) * kBlockBytes,
                       static_cast<const std::uint8_t*>(p.coefficients) +
                           (static_cast<std::int64_t>(first_block + g) * p.chunks + first_chunk +
                            i) * kBlockBytes,
                       kBlockBytes, barriers + 8 * i);
    }
    ptx::wait_for_previous_kernel();  // C does not depend on it, x and out do
    ptx::mbarrier_arrive_expect_bytes(basis_full, groups * kRowsBytes);
    for (int g = 0; g < groups; ++g)
      ptx::tensor_load(basis + g * kRowsBytes, p.x, basis_full,
                       p.basis_begin + 64 * ((first_block + g) % width_blocks), token);
    for (int i = 0; i < chunks; ++i) {
      const int channel = 64 * (first_chunk + i);
      ptx::tensor_load(rows + i * kRowsBytes, p.x, barriers + 8 * i,
                       channel < p.basis_begin ? channel : channel + p.width, token);
    }
  }
  __syncthreads();

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

  // ---- partial sums of the cluster: rank r adds up and stores every splits-th 16 tokens
  if (p.splits > 1) {
    __syncthreads();  // all products have read the operands that the partial sums overwrite
    const std::uint32_t mine = coefficients + (group * (kTokens / 8) * 128 + t) * 16;
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i)
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(mine + i * 128 * 16),
                   "f"(c[4 * i]), "f"(c[4 * i + 1]), "f"(c[4 * i + 2]), "f"(c[4 * i + 3])
                   : "memory");
    ptx::cluster_sync();
#pragma unroll
    for (int pair = 0; pair < kTokens / 16; ++pair) {
      if (pair % p.splits != rank) continue;
#pragma unroll
      for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
        float4 sum = ptx::load_from_cluster(mine + i * 128 * 16, 0);
        for (int r = 1; r < p.splits; ++r) {
          const float4 v = ptx::load_from_cluster(mine + i * 128 * 16, r);
          sum.x += v.x;
          sum.y += v.y;
          sum.z += v.z;
          sum.w += v.w;
        }
        c[4 * i] = sum.x;
        c[4 * i + 1] = sum.y;
        c[4 * i + 2] = sum.z;
        c[4 * i + 3] = sum.w;
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
  if (p.splits > 1) ptx::cluster_sync();  // nobody leaves while its partial sums are being read
#endif
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>

#include "bda/cuda/absorbed/config.hpp"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// The products of absorbed decoding on sm_90a. The time is that of streaming C once, so that every
/// CTA asks for all it needs at once and multiplies block by block as it arrives.
///
/// 64 output channels are the rows of wgmma, the tokens its columns. A packed tile of C is 64
/// columns (rows of the tile) x 64 channels: read as it lies it is the operand of kOutput, read
/// transposed that of kQuery. One warpgroup per 64 output channels, and four warps that fetch.
namespace bda::inline v0::cuda {

struct AbsorbedSm90Params {
  CUtensorMap x;    // [tokens, heads, width or kv_dim], boxes of kTokens x 1 x 64
  CUtensorMap out;  // [heads, blocks, tokens, 64], boxes of 16 tokens
  const void* coefficients;
  const void* bias;  // [heads, width] or null
  int width_blocks;  // of 64
  int rest_blocks;
  int basis_block;  // where S begins
};

/// grid: (blocks of a head / blocks of a CTA, heads, token tiles); 128 threads for each block of
/// the CTA, and 128.
template <class T, AbsorbedProduct kProduct, int kTokens>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(512), 1)
    absorbed_sm90_kernel(const __grid_constant__ AbsorbedSm90Params p) {
#if BDA_SM90A_CODE
  constexpr bool kQuery = kProduct == AbsorbedProduct::kQuery;
  constexpr std::uint32_t kTileBytes = 8192;           // 64 columns x 64 channels of C
  constexpr std::uint32_t kRowsBytes = kTokens * 128;  // kTokens rows x 64 channels of x
  const int groups = static_cast<int>(blockDim.x) / 128 - 1;
  const int first_block = static_cast<int>(blockIdx.x) * groups;
  const int head = static_cast<int>(blockIdx.y), token = static_cast<int>(blockIdx.z) * kTokens;
  const int depth = kQuery ? p.width_blocks : p.rest_blocks;
  const auto rest_block = [&](int i) { return i < p.basis_block ? i : i + p.width_blocks; };

  // Shared memory: C [depth][groups], x [depth], output [groups], for kOutput basis [groups],
  // barriers. detail::absorbed_shared_bytes counts the same.
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const std::uint32_t coefficients = ptx::shared_address(shared_bytes);
  const std::uint32_t rows = coefficients + depth * groups * kTileBytes;
  const std::uint32_t output = rows + depth * kRowsBytes;
  const std::uint32_t basis = output + groups * kRowsBytes;
  const std::uint32_t full = kQuery ? basis : basis + groups * kRowsBytes;
  const std::uint32_t basis_full = full + 8 * depth;

  ptx::allow_next_kernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i <= depth; ++i) ptx::mbarrier_init(full + 8 * i, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  if (static_cast<int>(threadIdx.x) >= 128 * groups) {
    // ------------------------------------------------------------------ producers
    if (threadIdx.x % 32 != 0) return;
    const int turn = static_cast<int>(threadIdx.x) / 32 - 4 * groups;
    // C does not depend on the kernel before, x and out do.
    for (int i = turn; i < depth * groups; i += 4) {
      const int k = i / groups, g = i % groups;
      if (g == 0) ptx::mbarrier_arrive_expect_bytes(full + 8 * k, groups * kTileBytes + kRowsBytes);
      const int column = head * p.width_blocks + (kQuery ? k : first_block + g);
      const int channel = kQuery ? first_block + g : k;
      ptx::bulk_load(coefficients + i * kTileBytes,
                     static_cast<const std::uint8_t*>(p.coefficients) +
                         (static_cast<std::int64_t>(column) * p.rest_blocks + channel) * kTileBytes,
                     kTileBytes, full + 8 * k);
    }
    ptx::wait_for_previous_kernel();
    for (int k = turn; k < depth; k += 4)
      ptx::tensor_load(rows + k * kRowsBytes, p.x, full + 8 * k, 64 * (kQuery ? k : rest_block(k)),
                       head, token);
    if (!kQuery && turn == 3) {
      ptx::mbarrier_arrive_expect_bytes(basis_full, groups * kRowsBytes);
      for (int g = 0; g < groups; ++g)
        ptx::tensor_load(basis + g * kRowsBytes, p.x, basis_full,
                         64 * (p.basis_block + first_block + g), head, token);
    }
    if (kQuery && blockIdx.x == 0) {  // the channels of S are the query itself
      for (int k = turn; k < depth; k += 4) {
        ptx::mbarrier_wait(full + 8 * k, 0);
        for (int t = 0; t < kTokens; t += 16)
          ptx::tensor_store(p.out, rows + k * kRowsBytes + t * 128, 0, token + t, p.basis_block + k,
                            head, ptx::policy_evict_first());
      }
      ptx::bulk_commit();
      ptx::bulk_wait_read<0>();
    }
    return;
  }

  // -------------------------------------------------------------------- consumers
  const int group = static_cast<int>(threadIdx.x) / 128, block = first_block + group;
  const int t = static_cast<int>(threadIdx.x) & 127, warp = t >> 5, lane = t & 31;
  // Piece of 8 channels and token row of this lane's address in a pair of 8-token fragments.
  const int channel_piece = warp * 2 + ((lane >> 3) & 1), pair_row = 8 * (lane >> 4) + (lane & 7);
  const auto fragment = [&](std::uint32_t base, int pair) {
    return base + group * kRowsBytes + (16 * pair + pair_row) * 128 +
           ((channel_piece ^ (lane & 7)) << 4);
  };
  float c[kTokens / 2];
  if constexpr (kQuery) {
#pragma unroll
    for (float& v : c) v = 0;
  } else {  // c[4 i + ...] is 8 tokens, two output channels
    float bias[2] = {0, 0};
    if (p.bias != nullptr) {
      const int column = (head * p.width_blocks + block) * 64 + warp * 16 + lane / 4;
      bias[0] = static_cast<float>(static_cast<const T*>(p.bias)[column]);
      bias[1] = static_cast<float>(static_cast<const T*>(p.bias)[column + 8]);
    }
    ptx::mbarrier_wait(basis_full, 0);
#pragma unroll
    for (int pair = 0; pair < kTokens / 16; ++pair) {
      std::uint32_t b[4];
      ptx::load_matrices_transposed(b, fragment(basis, pair));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 v = ptx::unpack_pair<T>(b[e]);
        c[8 * pair + 2 * e] = v.x + bias[e & 1];
        c[8 * pair + 2 * e + 1] = v.y + bias[e & 1];
      }
    }
  }
  for (int k = 0; k < depth; ++k) {
    ptx::mbarrier_wait(full + 8 * k, 0);
    ptx::wgmma_fence();
    const std::uint64_t w =
        ptx::matrix_descriptor(coefficients + (k * groups + group) * kTileBytes);
    const std::uint64_t x = ptx::matrix_descriptor(rows + k * kRowsBytes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kQuery)  // 16 columns of C further down the tile
        ptx::wgmma<T, kTokens, 1>(c, w + 128 * i, x + 2 * i, 1);
      else
        ptx::wgmma<T, kTokens>(c, w + 2 * i, x + 2 * i, 1);
    }
    ptx::wgmma_commit();
  }
  ptx::wgmma_wait<0>();
  ptx::delivered(c);

  // ---- to shared memory as rows of tokens, and out
#pragma unroll
  for (int pair = 0; pair < kTokens / 16; ++pair) {
    const float* v = &c[8 * pair];
    ptx::store_matrices_transposed(fragment(output, pair), ptx::pack_pair<T>(v[0], v[1]),
                                   ptx::pack_pair<T>(v[2], v[3]), ptx::pack_pair<T>(v[4], v[5]),
                                   ptx::pack_pair<T>(v[6], v[7]));
  }
  ptx::fence_proxy_async();
  if (group == 0)
    ptx::barrier_sync<1>(128);
  else if (group == 1)
    ptx::barrier_sync<2>(128);
  else
    ptx::barrier_sync<3>(128);
  if (t == 0) {
    for (int row = 0; row < kTokens; row += 16)
      ptx::tensor_store(p.out, output + group * kRowsBytes + row * 128, 0, token + row,
                        kQuery ? rest_block(block) : block, head, ptx::policy_evict_first());
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>

#include "bda/cuda/absorbed/config.hpp"
#include "bda/cuda/pipeline/accumulators.cuh"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// The products of absorbed decoding on sm_90a. The time is that of streaming C once, so that every
/// CTA asks for all it needs at once and multiplies block by block as it arrives: for x after two
/// thirds of C, because what comes from L2 queues behind what comes from memory.
///
/// 64 output channels are the rows of wgmma, the tokens its columns. A packed tile of C is 64
/// columns (rows of the tile) x 64 channels: read as it lies it is the operand of kOutput, read
/// transposed that of kQuery. Four warps ask for C, by the copy engine; one warpgroup per 64 output
/// channels fetches x itself meanwhile, because rows of 128 bytes would queue behind C there.
namespace bda::inline v0::cuda {

struct AbsorbedSm90Params {
  CUtensorMap out;                         // [heads, blocks, tokens, 64], boxes of 16 tokens
  const void* x;                           // [tokens, heads, width or kv_dim]
  const void* coefficients;                // packed
  const void* bias;                        // [heads, width] or null
  std::int64_t token_stride, head_stride;  // of x, in elements
  int tokens;
  int width_blocks;  // of 64
  int rest_blocks;
  int basis_block;  // where S begins
  int ahead;        // chunks of C that are asked for before x
};

/// grid: (token tiles, blocks of a head / blocks of a CTA, heads), so that those that want the same
/// C ask for it at the same time; 128 threads for each block of the CTA, and 128.
template <class T, AbsorbedProduct kProduct, int kTokens>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(512), 1)
    absorbed_sm90_kernel(const __grid_constant__ AbsorbedSm90Params p) {
#if BDA_SM90A_CODE
  constexpr bool kQuery = kProduct == AbsorbedProduct::kQuery;
  constexpr std::uint32_t kTileBytes = 8192;           // 64 columns x 64 channels of C
  constexpr std::uint32_t kRowsBytes = kTokens * 128;  // kTokens rows x 64 channels of x
  const int groups = static_cast<int>(blockDim.x) / 128 - 1;
  const int first_block = static_cast<int>(blockIdx.y) * groups;
  const int head = static_cast<int>(blockIdx.z), token = static_cast<int>(blockIdx.x) * kTokens;
  const int depth = kQuery ? p.width_blocks : p.rest_blocks;
  const auto rest_block = [&](int i) { return i < p.basis_block ? i : i + p.width_blocks; };

  // Shared memory: C [depth][groups], x [depth], output and before it basis [groups], barriers.
  // detail::absorbed_shared_bytes counts the same.
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  const std::uint32_t coefficients = ptx::shared_address(shared_bytes);
  const std::uint32_t rows = coefficients + depth * groups * kTileBytes;
  const std::uint32_t output = rows + depth * kRowsBytes;
  const std::uint32_t full = output + groups * kRowsBytes;

  // A producer makes the barriers of its own blocks and asks for the first of C, which does not
  // depend on the kernel before, without waiting for anybody.
  ptx::allow_next_kernel();
  const int turn = ptx::warp_index() - 4 * groups;
  if (turn >= 0) {
    const bool leads = ptx::elect_one();
    const auto fetch_coefficients = [&](int begin, int end) {  // every fourth is this warp's
      for (int k = begin + ((turn - begin) & 3); k < end; k += 4) {
        ptx::mbarrier_arrive_expect_bytes(full + 8 * k, groups * kTileBytes);
        for (int g = 0; g < groups; ++g) {
          const int column = head * p.width_blocks + (kQuery ? k : first_block + g);
          const int channel = kQuery ? first_block + g : k;
          ptx::bulk_load(
              coefficients + (k * groups + g) * kTileBytes,
              static_cast<const std::uint8_t*>(p.coefficients) +
                  (static_cast<std::int64_t>(column) * p.rest_blocks + channel) * kTileBytes,
              kTileBytes, full + 8 * k);
        }
      }
    };
    if (leads) {
      for (int k = turn; k < depth; k += 4) ptx::mbarrier_init(full + 8 * k, 1);
      ptx::fence_mbarrier_init();
      fetch_coefficients(0, p.ahead);
    }
    __syncwarp();
    ptx::barrier_sync<4>(blockDim.x);  // x is asked for
    if (leads) {
      fetch_coefficients(p.ahead, depth);
      if (turn == 3) ptx::prefetch_tensor_map(p.out);
    }
    __syncwarp();
    __syncthreads();
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
  const int half = (depth + 1) / 2;
  {
    ptx::wait_for_previous_kernel();
    const int piece = static_cast<int>(threadIdx.x) % 8, row0 = static_cast<int>(threadIdx.x) / 8;
    const T* const x = static_cast<const T*>(p.x) + head * p.head_stride + piece * 8;
    const auto fetch = [&](std::uint32_t to, int x_block) {
      for (int row = row0; row < kTokens; row += 16 * groups) {
        const bool valid = token + row < p.tokens;
        ptx::async_load_16(to + row * 128 + ((piece ^ (row & 7)) << 4),
                           valid ? x + (token + row) * p.token_stride + x_block * 64 : x, valid);
      }
    };
    // In two parts: the first is multiplied while the second arrives.
    if constexpr (!kQuery)
      for (int g = 0; g < groups; ++g)
        fetch(output + g * kRowsBytes, p.basis_block + first_block + g);
    for (int k = 0; k < half; ++k) fetch(rows + k * kRowsBytes, kQuery ? k : rest_block(k));
    ptx::async_commit();
    for (int k = half; k < depth; ++k) fetch(rows + k * kRowsBytes, kQuery ? k : rest_block(k));
    ptx::async_commit();
    ptx::barrier_arrive<4>(blockDim.x);
    ptx::async_wait<1>();
    ptx::fence_proxy_async();
    __syncthreads();  // the barriers are made too
  }
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
#pragma unroll
    for (int pair = 0; pair < kTokens / 16; ++pair) {
      std::uint32_t b[4];
      ptx::load_matrices_transposed(b, fragment(output, pair));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 v = ptx::unpack_pair<T>(b[e]);
        c[8 * pair + 2 * e] = v.x + bias[e & 1];
        c[8 * pair + 2 * e + 1] = v.y + bias[e & 1];
      }
    }
  }
  const auto multiply = [&](int k) {
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
  };
  multiply(0);  // before the loop, so that within it only wgmma touches the accumulator
  for (int k = 1; k < half; ++k) multiply(k);
  ptx::async_wait<0>();
  ptx::fence_proxy_async();
  ptx::barrier_sync<5>(128 * groups);
  if (kQuery && blockIdx.y == 0 && threadIdx.x == 0) {  // the channels of S are the query itself
    for (int k = 0; k < depth; ++k)
      for (int i = 0; i < kTokens; i += 16)
        ptx::tensor_store(p.out, rows + k * kRowsBytes + i * 128, 0, token + i, p.basis_block + k,
                          head);
    ptx::bulk_commit();
  }
  __syncwarp();
  for (int k = half; k < depth; ++k) multiply(k);
  ptx::wgmma_wait<0>();
  ptx::delivered(c);

  // ---- to shared memory as rows of tokens, and out. A warp writes where it read the basis.
#pragma unroll
  for (int pair = 0; pair < kTokens / 16; ++pair) {
    const float* v = &c[8 * pair];
    store_rounded_transposed<T>(fragment(output, pair), v);
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
                        kQuery ? rest_block(block) : block, head);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda

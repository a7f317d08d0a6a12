#pragma once

#include <cstdint>

#include "bda/cuda/attend/kernel_rows.cuh"
#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Softmax attention over latents on sm_90a: absorbed decoding of MLA (DeepSeek-V2, arXiv
/// 2405.04434, section 2.1.2), where a key is [latent | rope] and its value the latent itself.
///
/// One CTA a query, up to 64 of its heads and one part of the keys, which are read once for both
/// products. Roles:
///   producer, one thread: brings the queries once and tiles of 64 keys through a ring;
///   two consumer warpgroups: each forms the scores of 32 of the 64 keys, they exchange largest
///   scores and probabilities, and each sums half of the latent's channels. The scores of a tile
///   are formed while the tensor cores still sum the values of the one before.
/// Widths are padded: the copy engine fills what is beyond a tensor with zeros.
namespace bda::inline v0::cuda {

template <class T>
struct Sm90LatentParams {
  CUtensorMap q;      // [batch, queries, heads, qk], boxes of 64 heads x 64 channels
  CUtensorMap k;      // [batch, keys, kv_heads, qk], boxes of 64 keys x 64 channels
  RowsParams<T> row;  // its pointers q, k and v are not read here
};

namespace sm90_latent {

constexpr int kThreads = 384;
constexpr int kTile = 64;                   // keys, and heads
constexpr std::uint32_t kBlock = 64 * 128;  // bytes of 64 rows x 64 channels

/// `kV`: blocks of 64 channels of a value, of which a key has one more.
template <int kV>
struct Shared {
  static constexpr int kStages = kV > 4 ? 2 : 4;
  alignas(1024) std::uint8_t q[kV + 1][kBlock];
  std::uint8_t k[kStages][kV + 1][kBlock];
  uint4 weights[2][2][128];  // each warpgroup's probabilities, as operands of 16 keys
  float largest[2][kTile];
  float sums[2][kTile];
  RingBarriers<kStages> barriers;
  std::uint64_t q_full;
};

}  // namespace sm90_latent

/// grid: (splits, tiles of heads x kv_heads x queries, batch)
template <class T, int kV>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_latent_kernel(const __grid_constant__ Sm90LatentParams<T> p) {
#if BDA_SM90A_CODE
  using namespace sm90_latent;
  using Layout = Shared<kV>;
  constexpr int kStages = Layout::kStages;
  constexpr std::uint32_t kStage = (kV + 1) * kBlock;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Layout& shared = *reinterpret_cast<Layout*>(shared_bytes);
  const std::uint32_t q = ptx::shared_address(shared.q), k = ptx::shared_address(shared.k);
  const std::uint32_t q_full = ptx::shared_address(&shared.q_full);
  const std::uint32_t full = ptx::shared_address(shared.barriers.full);
  const std::uint32_t empty = ptx::shared_address(shared.barriers.empty);

  if (threadIdx.x == 0) {
    shared.barriers.init(8);  // one arrival per consumer warp
    ptx::mbarrier_init(q_full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();

  const RowsParams<T>& row = p.row;
  const int head_tiles = (row.group + kTile - 1) / kTile;
  const int at = static_cast<int>(blockIdx.y), kv_heads = row.heads / row.group;
  const int kv_head = at / head_tiles % kv_heads, query = at / head_tiles / kv_heads;
  const int first_head = kv_head * row.group + at % head_tiles * kTile;
  const int heads = min(kTile, (kv_head + 1) * row.group - first_head);
  const int split = static_cast<int>(blockIdx.x), batch = static_cast<int>(blockIdx.z);

  // All rows are of one query: the same keys are visible to them.
  const int position = query + row.keys - row.queries;
  const int length = row.key_lengths == nullptr ? row.keys : min(row.key_lengths[batch], row.keys);
  const int visible_begin = row.window > 0 ? max(position - row.window + 1, 0) : 0;
  const int begin = max(split * row.keys_per_split, visible_begin / kTile * kTile);
  const int end =
      min((split + 1) * row.keys_per_split, row.causal ? min(length, position + 1) : length);
  const int tiles = end > begin ? (end - begin + kTile - 1) / kTile : 0;

  if (threadIdx.x < 128) {
    // ------------------------------------------------------------------ producer
    ptx::give_up_registers<24>();
    if (threadIdx.x != 0 || tiles == 0) return;
    ptx::mbarrier_arrive_expect_bytes(q_full, kStage);
    for (int i = 0; i <= kV; ++i)
      ptx::tensor_load(q + i * kBlock, p.q, q_full, 64 * i, first_head, query, batch);
    RingPosition<kStages> slot;
    for (int tile = 0; tile < tiles; ++tile, slot.advance()) {
      ptx::mbarrier_wait(empty + 8 * slot.slot, slot.parity ^ 1);
      ptx::mbarrier_arrive_expect_bytes(full + 8 * slot.slot, kStage);
      for (int i = 0; i <= kV; ++i)
        ptx::tensor_load(k + slot.slot * kStage + i * kBlock, p.k, full + 8 * slot.slot, 64 * i,
                         kv_head, begin + tile * kTile, batch);
    }
    return;
  }

  // -------------------------------------------------------------------- consumers
  ptx::claim_registers<240>();
  const int t = static_cast<int>(threadIdx.x) - 128, lane = t & 31;
  const int group = t >> 7, tile_row = t / 32 % 4 * 16 + lane / 4;  // and tile_row + 8
  constexpr float kLog2e = 1.4426950408889634f;
  const float scale = row.scale * kLog2e;  // scores in units of log 2 from here on
  const float softcap = row.softcap * kLog2e;

  float s[16], o[16 * kV];               // scores of 32 keys; half of the channels
  std::uint32_t own[2][4], other[2][4];  // the probabilities as operands, 16 keys each
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, correction[2];
#pragma unroll
  for (float& value : o) value = 0;

  const auto queue_scores = [&](int slot) {
    ptx::wgmma_fence();
    const std::uint64_t a = ptx::matrix_descriptor(q);
    const std::uint64_t b = ptx::matrix_descriptor(k + slot * kStage + group * (kBlock / 2));
#pragma unroll
    for (int i = 0; i <= kV; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        ptx::wgmma<T, 32>(s, a + i * (kBlock / 16) + 2 * j, b + i * (kBlock / 16) + 2 * j,
                          i + j > 0);
    ptx::wgmma_commit();
  };
  const auto queue_values = [&](int slot) {
    ptx::wgmma_fence();
    const std::uint64_t b =
        ptx::transposed_matrix_descriptor(k + slot * kStage + group * (kV / 2 * kBlock), kBlock);
#pragma unroll
    for (int i = 0; i < 2; ++i) ptx::wgmma<T, 32 * kV, 1>(o, own[i], b + 128 * (2 * group + i));
#pragma unroll
    for (int i = 0; i < 2; ++i)
      ptx::wgmma<T, 32 * kV, 1>(o, other[i], b + 128 * (2 * (group ^ 1) + i));
    ptx::wgmma_commit();
  };
  // Latents behind the last key may be anything, and 0 x NaN is NaN: zeros in their place.
  const auto receive = [&](int tile, const RingPosition<kStages>& slot) {
    ptx::mbarrier_wait(full + 8 * slot.slot, slot.parity);
    const int valid = end - begin - tile * kTile;
    if (valid >= kTile) return;
    const int words = (kTile - valid) * 8;  // of 16 bytes, in each block
    for (int i = t; i < words * (kV + 1); i += 256)
      reinterpret_cast<uint4*>(shared.k[slot.slot][i / words] + valid * 128)[i % words] =
          make_uint4(0, 0, 0, 0);
    ptx::fence_proxy_async();
    ptx::barrier_sync<1>(256);
  };

  // Scores of tile `tile` into probabilities, relative to the largest so far; what came before is
  // to be multiplied by `correction`.
  const auto soften = [&](int tile) {
    const int first_key = begin + tile * kTile + 32 * group;
    if (softcap > 0) {
#pragma unroll
      for (float& value : s) value = softcap * tanhf(value * row.scale / row.softcap);
    } else {
#pragma unroll
      for (float& value : s) value *= scale;
    }
    if (first_key + 32 > end || first_key < visible_begin) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int key = first_key + i / 4 * 8 + 2 * (lane & 3) + (i & 1);
        if (key >= end || key < visible_begin) s[i] = -INFINITY;
      }
    }
    float most[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      most[half] = largest[half];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        most[half] = fmaxf(most[half], fmaxf(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]));
      most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 2));
      if ((lane & 3) == 0) shared.largest[group][tile_row + 8 * half] = most[half];
    }
    ptx::barrier_sync<1>(256);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      most[half] = fmaxf(most[half], shared.largest[group ^ 1][tile_row + 8 * half]);
      const float base = most[half] == -INFINITY ? 0 : most[half];
      correction[half] = exp2f(largest[half] - base);
      largest[half] = most[half];
      float total = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& value = s[4 * i + 2 * half + e];
          value = exp2f(value - base);
          total += value;
        }
      sum[half] = sum[half] * correction[half] + total;
    }
  };
  // Not before the product that reads the ones before is done.
  const auto exchange_weights = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        own[i][e] = ptx::pack_pair<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
      shared.weights[group][i][t & 127] = make_uint4(own[i][0], own[i][1], own[i][2], own[i][3]);
    }
    ptx::barrier_sync<1>(256);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 words = shared.weights[group ^ 1][i][t & 127];
      other[i][0] = words.x;
      other[i][1] = words.y;
      other[i][2] = words.z;
      other[i][3] = words.w;
    }
  };

  if (tiles > 0) {
    RingPosition<kStages> scored, summed;
    ptx::mbarrier_wait(q_full, 0);
    receive(0, scored);
    queue_scores(scored.slot);
    ptx::wgmma_wait<0>();
    ptx::delivered(s);
    soften(0);
    exchange_weights();
    for (int tile = 1; tile < tiles; ++tile) {
      scored.advance();
      receive(tile, scored);
      queue_scores(scored.slot);
      queue_values(summed.slot);
      ptx::wgmma_wait<1>();
      ptx::delivered(s);
      soften(tile);
      ptx::wgmma_wait<0>();
      ptx::delivered(o);
      if (lane == 0) ptx::mbarrier_arrive(empty + 8 * summed.slot);
      summed.advance();
#pragma unroll
      for (int i = 0; i < 16 * kV; ++i) o[i] *= correction[(i >> 1) & 1];
      exchange_weights();
    }
    queue_values(summed.slot);
    ptx::wgmma_wait<0>();
    ptx::delivered(o);
  }

  // ---- the sums over both halves of the keys
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    if ((lane & 3) == 0) shared.sums[group][tile_row + 8 * half] = sum[half];
  }
  ptx::barrier_sync<1>(256);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int tile_head = tile_row + 8 * half, head = first_head + tile_head;
    if (tile_head >= heads) continue;
    const float total = sum[half] + shared.sums[group ^ 1][tile_head];
    const int first_channel = group * 32 * kV + 2 * (lane & 3);
    if (row.partial == nullptr) {
      float factor = total > 0 ? 1 / total : 0;
      if (row.sinks != nullptr && total > 0)
        factor = 1 / (total + exp2f(fminf(row.sinks[head] * kLog2e - largest[half], 126.0f)));
      T* const to = row.out + batch * row.out_strides[0] + query * row.out_strides[1] +
                    head * row.out_strides[2];
#pragma unroll
      for (int i = 0; i < 4 * kV; ++i)
        if (first_channel + 8 * i < row.v_width)
          *reinterpret_cast<std::uint32_t*>(to + first_channel + 8 * i) =
              ptx::pack_pair<T>(o[4 * i + 2 * half] * factor, o[4 * i + 2 * half + 1] * factor);
    } else {
      float* const to =
          row.partial +
          (((static_cast<std::int64_t>(batch) * row.queries + query) * row.heads + head) *
               row.splits +
           split) *
              (row.v_width + 2);
#pragma unroll
      for (int i = 0; i < 4 * kV; ++i)
        if (first_channel + 8 * i < row.v_width)
          *reinterpret_cast<float2*>(to + first_channel + 8 * i) =
              make_float2(o[4 * i + 2 * half], o[4 * i + 2 * half + 1]);
      if (group == 0 && (lane & 3) == 0)
        *reinterpret_cast<float2*>(to + row.v_width) = make_float2(largest[half], total);
    }
  }
#endif
}

}  // namespace bda::inline v0::cuda

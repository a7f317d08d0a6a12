#pragma once

#include <cstdint>

#include "bda/cuda/pipeline/ring.cuh"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"
#include "bda/cuda/ptx/wgmma.cuh"

/// Softmax attention over tiles of 128 queries on sm_90a (online softmax: FlashAttention, arXiv
/// 2205.14135; the overlap of one tile's softmax with another's products: FlashAttention-3, arXiv
/// 2407.08608).
///
/// One CTA a tile of queries and head. Roles:
///   producer, one thread: brings the queries once, and keys and values through two-stage rings;
///   two consumer warpgroups, 64 queries each: while they turn the scores of one tile of keys into
///   probabilities, the tensor cores multiply the probabilities before with their values.
/// Widths are padded to 64 channels: the copy engine fills what is beyond a tensor with zeros.
namespace bda::inline v0::cuda {

struct Sm90TileParams {
  CUtensorMap q;    // [batch, queries, heads, qk], boxes of 128 queries x 64 channels
  CUtensorMap k;    // [batch, keys, kv_heads, qk], boxes of a tile of keys x 64
  CUtensorMap v;    // [batch, keys, kv_heads, v], likewise
  CUtensorMap out;  // [batch, queries, heads, v], boxes of 16 queries x 64
  const std::int32_t* key_lengths;
  const float* sinks;
  int queries, keys, group;
  float scale, softcap;
  int causal, window;
};

namespace sm90_tile {

constexpr int kThreads = 384;
constexpr int kStages = 2;

/// `kQk`, `kV`: widths in blocks of 64 channels.
template <int kQk, int kV>
struct Shared {
  static constexpr int kKeys = kQk + kV > 5 ? 64 : 128;  // of a tile
  static constexpr std::uint32_t kBlock = kKeys * 128;   // a tile of keys x 64 channels
  alignas(1024) std::uint8_t q[kQk][128 * 128];          // then the output
  std::uint8_t k[kStages][kQk][kBlock];
  std::uint8_t v[kStages][kV][kBlock];
  RingBarriers<kStages> k_barriers, v_barriers;
  std::uint64_t q_full;
};

}  // namespace sm90_tile

/// grid: (heads, tiles of queries, batch)
template <class T, int kQk, int kV>
__global__ void __launch_bounds__(BDA_SM90A_THREADS(384), 1)
    sm90_tile_kernel(const __grid_constant__ Sm90TileParams p) {
#if BDA_SM90A_CODE
  using namespace sm90_tile;
  using Layout = Shared<kQk, kV>;
  constexpr int kKeys = Layout::kKeys;
  constexpr std::uint32_t kBlock = Layout::kBlock;
  extern __shared__ __align__(1024) std::uint8_t shared_bytes[];
  Layout& shared = *reinterpret_cast<Layout*>(shared_bytes);
  const std::uint32_t q = ptx::shared_address(shared.q), k = ptx::shared_address(shared.k);
  const std::uint32_t v = ptx::shared_address(shared.v);
  const std::uint32_t q_full = ptx::shared_address(&shared.q_full);
  const std::uint32_t k_full = ptx::shared_address(shared.k_barriers.full);
  const std::uint32_t k_empty = ptx::shared_address(shared.k_barriers.empty);
  const std::uint32_t v_full = ptx::shared_address(shared.v_barriers.full);
  const std::uint32_t v_empty = ptx::shared_address(shared.v_barriers.empty);

  if (threadIdx.x == 0) {
    shared.k_barriers.init(8);  // one arrival per consumer warp
    shared.v_barriers.init(8);
    ptx::mbarrier_init(q_full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();

  // The last tiles first: under a causal mask they take longest.
  const int head = static_cast<int>(blockIdx.x), batch = static_cast<int>(blockIdx.z);
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * 128;
  const int last_query = min(first_query + 127, p.queries - 1);
  const int offset = p.keys - p.queries;  // a query's position, less its index
  const int length = p.key_lengths == nullptr ? p.keys : min(p.key_lengths[batch], p.keys);
  const int key_end = p.causal ? min(length, last_query + offset + 1) : length;
  const int key_begin = p.window > 0 ? max(first_query + offset - p.window + 1, 0) : 0;
  const int first_tile = key_begin / kKeys;
  const int tiles = key_end > key_begin ? (key_end - 1) / kKeys + 1 - first_tile : 0;

  if (threadIdx.x < 128) {
    // ------------------------------------------------------------------ producer
    ptx::give_up_registers<24>();
    if (threadIdx.x != 0 || tiles == 0) return;
    const int kv_head = head / p.group;
    ptx::mbarrier_arrive_expect_bytes(q_full, kQk * 128 * 128);
    for (int i = 0; i < kQk; ++i)
      ptx::tensor_load(q + i * (128 * 128), p.q, q_full, 64 * i, head, first_query, batch);
    const auto fetch = [&](std::uint32_t target, const CUtensorMap& map, std::uint32_t barrier,
                           int blocks, int tile) {
      ptx::mbarrier_arrive_expect_bytes(barrier, blocks * kBlock);
      for (int i = 0; i < blocks; ++i)
        ptx::tensor_load(target + i * kBlock, map, barrier, 64 * i, kv_head,
                         (first_tile + tile) * kKeys, batch);
    };
    RingPosition<kStages> at_k, at_v;
    for (int tile = 0; tile <= tiles; ++tile) {  // the values one tile behind the keys
      if (tile < tiles) {
        ptx::mbarrier_wait(k_empty + 8 * at_k.slot, at_k.parity ^ 1);
        fetch(k + at_k.slot * (kQk * kBlock), p.k, k_full + 8 * at_k.slot, kQk, tile);
        at_k.advance();
      }
      if (tile > 0) {
        ptx::mbarrier_wait(v_empty + 8 * at_v.slot, at_v.parity ^ 1);
        fetch(v + at_v.slot * (kV * kBlock), p.v, v_full + 8 * at_v.slot, kV, tile - 1);
        at_v.advance();
      }
    }
    return;
  }

  // -------------------------------------------------------------------- consumers
  ptx::claim_registers<240>();
  const int t = static_cast<int>(threadIdx.x) - 128, lane = t & 31;
  const int group = t >> 7, warp_row = t / 32 * 16;  // of the tile
  // This thread's scores: rows row and row + 8, and of each 8 keys 2 (lane % 4) and the next.
  const int row = first_query + warp_row + lane / 4;
  constexpr float kLog2e = 1.4426950408889634f;
  const float scale = p.scale * kLog2e;  // scores in units of log 2 from here on
  const float softcap = p.softcap * kLog2e;
  const auto release = [&](std::uint32_t barrier) {
    if (lane == 0) ptx::mbarrier_arrive(barrier);
  };

  float s[kKeys / 2], o[32 * kV];
  std::uint32_t weights[kKeys / 16][4];  // the probabilities as operands
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (float& value : o) value = 0;

  RingPosition<kStages> at_k, at_v;
  const auto queue_scores = [&] {
    ptx::mbarrier_wait(k_full + 8 * at_k.slot, at_k.parity);
    ptx::wgmma_fence();
    const std::uint64_t a = ptx::matrix_descriptor(q + group * 8192);
    const std::uint64_t b = ptx::matrix_descriptor(k + at_k.slot * (kQk * kBlock));
#pragma unroll
    for (int i = 0; i < kQk; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        ptx::wgmma<T, kKeys>(s, a + i * (128 * 128 / 16) + 2 * j, b + i * (kBlock / 16) + 2 * j,
                             i + j > 0);
    ptx::wgmma_commit();
  };
  // Values behind the last key may be anything, and 0 x NaN is NaN: zeros in their place.
  const auto clear_unseen = [&](int tile) {
    const int valid = length - (first_tile + tile) * kKeys;
    if (length == p.keys || valid >= kKeys) return;
    const int words = (kKeys - valid) * 8;  // of 16 bytes, in each block
    for (int i = t; i < words * kV; i += 256)
      reinterpret_cast<uint4*>(shared.v[at_v.slot][i / words] + valid * 128)[i % words] =
          make_uint4(0, 0, 0, 0);
    ptx::fence_proxy_async();
    ptx::barrier_sync<3>(256);
  };
  const auto queue_values = [&](int tile) {
    ptx::mbarrier_wait(v_full + 8 * at_v.slot, at_v.parity);
    clear_unseen(tile);
    ptx::wgmma_fence();
    const std::uint64_t b =
        ptx::transposed_matrix_descriptor(v + at_v.slot * (kV * kBlock), kBlock);
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) ptx::wgmma<T, 64 * kV, 1>(o, weights[i], b + 128 * i);
    ptx::wgmma_commit();
  };

  // Scores of tile `tile` into probabilities, relative to the largest so far; what came before is
  // to be multiplied by `correction`.
  float correction[2];
  const auto soften = [&](int tile) {
    const int first_key = (first_tile + tile) * kKeys;
    if (softcap > 0) {
#pragma unroll
      for (float& value : s) value = softcap * tanhf(value * p.scale / p.softcap);
    } else {
#pragma unroll
      for (float& value : s) value *= scale;
    }
    const int row_of_first = first_query + group * 64;
    const bool all_visible = first_key + kKeys <= length &&
                             (!p.causal || first_key + kKeys - 1 <= row_of_first + offset) &&
                             (p.window == 0 || row_of_first + 63 + offset - first_key < p.window);
    if (!all_visible) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = first_key + i / 4 * 8 + 2 * (lane & 3) + (i & 1);
        const int position = row + 8 * ((i >> 1) & 1) + offset;
        const bool visible = key < length && (!p.causal || key <= position) &&
                             (p.window == 0 || position - key < p.window);
        if (!visible) s[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[half];
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i)
        most = fmaxf(most, fmaxf(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const float base = most == -INFINITY ? 0 : most;  // a row that sees nothing yet
      correction[half] = exp2f(largest[half] - base);
      largest[half] = most;
      float total = 0;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& value = s[4 * i + 2 * half + e];
          value = exp2f(value - base);
          total += value;
        }
      sum[half] = sum[half] * correction[half] + total;
    }
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        weights[i][e] = ptx::pack_pair<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
  };

  if (tiles > 0) {
    ptx::mbarrier_wait(q_full, 0);
    queue_scores();
    ptx::wgmma_wait<0>();
    ptx::delivered(s);
    release(k_empty + 8 * at_k.slot);
    at_k.advance();
    soften(0);
    pack_weights();
    for (int tile = 1; tile < tiles; ++tile) {
      queue_scores();
      queue_values(tile - 1);
      ptx::wgmma_wait<1>();
      ptx::delivered(s);
      release(k_empty + 8 * at_k.slot);
      at_k.advance();
      soften(tile);
      ptx::wgmma_wait<0>();
      ptx::delivered(o);
      release(v_empty + 8 * at_v.slot);
      at_v.advance();
#pragma unroll
      for (int i = 0; i < 32 * kV; ++i) o[i] *= correction[(i >> 1) & 1];
      pack_weights();
    }
    queue_values(tiles - 1);
    ptx::wgmma_wait<0>();
    ptx::delivered(o);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    float factor = total > 0 ? 1 / total : 0;
    if (p.sinks != nullptr && total > 0)  // the same with the sink in the sum, without overflow
      factor = 1 / (total + exp2f(fminf(p.sinks[head] * kLog2e - largest[half], 126.0f)));
    correction[half] = factor;
  }
  // ---- out, in the place of the queries, once the whole warpgroup has read them
  if (group == 0)
    ptx::barrier_sync<1>(128);
  else
    ptx::barrier_sync<2>(128);
  const std::uint32_t output_row = q + (warp_row + (lane & 15)) * 128;
#pragma unroll
  for (int i = 0; i < kV; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* value = &o[32 * i + 8 * j];
      ptx::store_matrices(
          output_row + i * (128 * 128) + ((((lane >> 4) ^ (lane & 7)) << 4) ^ (j << 5)),
          ptx::pack_pair<T>(value[0] * correction[0], value[1] * correction[0]),
          ptx::pack_pair<T>(value[2] * correction[1], value[3] * correction[1]),
          ptx::pack_pair<T>(value[4] * correction[0], value[5] * correction[0]),
          ptx::pack_pair<T>(value[6] * correction[1], value[7] * correction[1]));
    }
  ptx::fence_proxy_async();
  __syncwarp();
  if (lane == 0 && first_query + warp_row < p.queries) {
    for (int i = 0; i < kV; ++i)
      ptx::tensor_store(p.out, q + i * (128 * 128) + warp_row * 128, 64 * i, head,
                        first_query + warp_row, batch, ptx::kEvictFirst);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
#endif
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>

#include "bda/cuda/attend/config.hpp"
#include "bda/cuda/ptx/matrix.cuh"
#include "bda/cuda/ptx/memory.cuh"

/// Softmax attention of few rows over many keys (decoding), bound by reading keys and values.
///
/// A row is a query of one head; the rows of a group of heads read the same keys. One CTA takes up
/// to kRows of them and one part of the keys, in tiles of 64: sixteen groups of eight lanes take a
/// key each, a lane eight channels of each 64. The values of a tile are asked for before its scores
/// are reduced, so that memory never waits for arithmetic. With several parts, a second kernel puts
/// their results together.
namespace bda::inline v0::cuda {

template <class T>
struct RowsParams {
  const T *q, *k, *v;
  T* out;
  std::int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3];  // batch, token, head
  const std::int32_t* key_lengths;
  const float* sinks;
  float* partial;  // [batch, rows of all heads, splits, v + 2]: sums, largest, sum; or null
  int queries, keys, heads, group;
  int qk_width, v_width;
  int splits, keys_per_split;  // the latter in whole tiles
  float scale, softcap;
  int causal, window;
};

namespace rows_attention {

constexpr int kThreads = 128;
constexpr int kTile = static_cast<int>(detail::kAttendTile);  // keys
constexpr int kLanes = 8;                                     // to a key
constexpr int kSteps = kTile / (kThreads / kLanes);
constexpr float kLog2e = 1.4426950408889634f;

}  // namespace rows_attention

/// grid: (splits, kv_heads x blocks of rows, batch). `kQk`, `kV`: widths in blocks of 64 channels.
template <class T, int kQk, int kV, int kRows>
__global__ void __launch_bounds__(128) rows_kernel(const __grid_constant__ RowsParams<T> p) {
#if __CUDA_ARCH__ >= 800
  using namespace rows_attention;
  __shared__ float scores[2][kRows][kTile];
  __shared__ float corrections[2][kRows], sums[kRows], most[kRows];
  __shared__ float gathered[kThreads / 32][kRows][64 * kV];

  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();
  const int batch = static_cast<int>(blockIdx.z), split = static_cast<int>(blockIdx.x);
  const int all_rows = p.queries * p.group;
  const int row_blocks = (all_rows + kRows - 1) / kRows;
  const int kv_head = static_cast<int>(blockIdx.y) / row_blocks;
  const int first_row = static_cast<int>(blockIdx.y) % row_blocks * kRows;
  const int t = static_cast<int>(threadIdx.x), piece = t % kLanes, key_lane = t / kLanes;

  // Row r is query r / group of head kv_head * group + r % group.
  const auto query_of = [&](int r) { return min(first_row + r, all_rows - 1) / p.group; };
  const auto head_of = [&](int r) {
    return kv_head * p.group + min(first_row + r, all_rows - 1) % p.group;
  };
  const int offset = p.keys - p.queries;
  const int length = p.key_lengths == nullptr ? p.keys : min(p.key_lengths[batch], p.keys);
  const int last_position = query_of(kRows - 1) + offset, first_position = query_of(0) + offset;
  const int visible_end = p.causal ? min(length, last_position + 1) : length;
  const int visible_begin = p.window > 0 ? max(first_position - p.window + 1, 0) : 0;
  const int begin = max(split * p.keys_per_split, visible_begin / kTile * kTile);
  const int end = min((split + 1) * p.keys_per_split, visible_end);

  float q[kRows][kQk][8];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kQk; ++i) {
      const int channel = 64 * i + 8 * piece;
      uint4 words = make_uint4(0, 0, 0, 0);
      if (channel < p.qk_width)
        words = *reinterpret_cast<const uint4*>(p.q + batch * p.q_strides[0] +
                                                query_of(r) * p.q_strides[1] +
                                                head_of(r) * p.q_strides[2] + channel);
      const std::uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 pair = ptx::unpack_pair<T>(pairs[e]);
        q[r][i][2 * e] = pair.x;
        q[r][i][2 * e + 1] = pair.y;
      }
    }
  if (t < kRows) {
    sums[t] = 0;
    most[t] = -INFINITY;
  }
  float o[kRows][kV][8] = {};
  const T* const keys = p.k + batch * p.k_strides[0] + kv_head * p.k_strides[2];
  const T* const values = p.v + batch * p.v_strides[0] + kv_head * p.v_strides[2];
  const auto load = [](const T* base, std::int64_t stride, int key, int last, int channel,
                       int width) {
    return channel < width
               ? __ldg(reinterpret_cast<const uint4*>(base + min(key, last) * stride + channel))
               : make_uint4(0, 0, 0, 0);
  };
  __syncthreads();

  int buffer = 0;
  for (int tile = begin; tile < end; tile += kTile, buffer ^= 1) {
    uint4 key_words[kSteps][kQk], value_words[kSteps][kV];
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < kQk; ++i)
        key_words[step][i] =
            load(keys, p.k_strides[1], tile + step * (kThreads / kLanes) + key_lane, end - 1,
                 64 * i + 8 * piece, p.qk_width);
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < kV; ++i)
        value_words[step][i] =
            load(values, p.v_strides[1], tile + step * (kThreads / kLanes) + key_lane, end - 1,
                 64 * i + 8 * piece, p.v_width);

        // ---- scores, in units of log 2
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      float dot[kRows] = {};
#pragma unroll
      for (int i = 0; i < kQk; ++i) {
        const uint4 w = key_words[step][i];
        const std::uint32_t pairs[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float2 pair = ptx::unpack_pair<T>(pairs[e]);
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            dot[r] += q[r][i][2 * e] * pair.x + q[r][i][2 * e + 1] * pair.y;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int lanes = 1; lanes < kLanes; lanes *= 2)
          dot[r] += __shfl_xor_sync(0xffffffffu, dot[r], lanes);
        if (piece == 0) {
          const int at = step * (kThreads / kLanes) + key_lane, key = tile + at;
          const int position = query_of(r) + offset;
          const bool visible = key < end && (!p.causal || key <= position) &&
                               (p.window == 0 || position - key < p.window);
          float score = dot[r] * p.scale;
          if (p.softcap > 0) score = p.softcap * tanhf(score / p.softcap);
          scores[buffer][r][at] = visible ? score * kLog2e : -INFINITY;
        }
      }
    }
    __syncthreads();

    // ---- probabilities: a warp a row
    for (int r = t / 32; r < kRows; r += kThreads / 32) {
      const int lane = t % 32;
      float* const row = scores[buffer][r];
      const float before = most[r];
      float largest = fmaxf(row[lane], row[lane + 32]);
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
      largest = fmaxf(largest, before);
      const float base = largest == -INFINITY ? 0 : largest;
      const float low = exp2f(row[lane] - base), high = exp2f(row[lane + 32] - base);
      row[lane] = low;
      row[lane + 32] = high;
      float total = low + high;
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2)
        total += __shfl_xor_sync(0xffffffffu, total, lanes);
      __syncwarp();  // all have read most[r]
      if (lane == 0) {
        const float correction = exp2f(before - base);
        corrections[buffer][r] = correction;
        sums[r] = sums[r] * correction + total;
        most[r] = largest;
      }
    }
    __syncthreads();

    // ---- values. The other buffer is free: all threads are past its values.
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float correction = corrections[buffer][r];
#pragma unroll
      for (int i = 0; i < kV; ++i)
#pragma unroll
        for (float& value : o[r][i]) value *= correction;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      float weight[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        weight[r] = scores[buffer][r][step * (kThreads / kLanes) + key_lane];
#pragma unroll
      for (int i = 0; i < kV; ++i) {
        const uint4 w = value_words[step][i];
        const std::uint32_t pairs[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float2 pair = ptx::unpack_pair<T>(pairs[e]);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            o[r][i][2 * e] += weight[r] * pair.x;
            o[r][i][2 * e + 1] += weight[r] * pair.y;
          }
        }
      }
    }
  }

  // ---- over the key lanes of the warp, then over the warps
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kV; ++i)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        float value = o[r][i][e];
        value += __shfl_xor_sync(0xffffffffu, value, 8);
        value += __shfl_xor_sync(0xffffffffu, value, 16);
        if (t % 32 < kLanes) gathered[t / 32][r][64 * i + 8 * piece + e] = value;
      }
  __syncthreads();
  for (int at = t; at < kRows * 64 * kV; at += kThreads) {
    const int r = at / (64 * kV), channel = at % (64 * kV);
    if (first_row + r >= all_rows || channel >= p.v_width) continue;
    float value = 0;
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) value += gathered[warp][r][channel];
    const int query = query_of(r), head = head_of(r);
    if (p.partial == nullptr) {
      float total = sums[r];
      if (p.sinks != nullptr && total > 0)
        total += exp2f(fminf(p.sinks[head] * kLog2e - most[r], 126.0f));
      p.out[batch * p.out_strides[0] + query * p.out_strides[1] + head * p.out_strides[2] +
            channel] = static_cast<T>(total > 0 ? value / total : 0);
    } else {
      float* const to =
          p.partial +
          (((static_cast<std::int64_t>(batch) * p.queries + query) * p.heads + head) * p.splits +
           split) *
              (p.v_width + 2);
      to[channel] = value;
      if (channel == 0) {
        to[p.v_width] = most[r];
        to[p.v_width + 1] = sums[r];
      }
    }
  }
#endif
}

/// The parts of each row together. grid: (queries x heads, batch), 64 threads.
template <class T>
__global__ void __launch_bounds__(64) combine_rows_kernel(const __grid_constant__ RowsParams<T> p) {
#if __CUDA_ARCH__ >= 800
  using namespace rows_attention;
  ptx::allow_next_kernel();
  ptx::wait_for_previous_kernel();
  const int query = static_cast<int>(blockIdx.x) / p.heads;
  const int head = static_cast<int>(blockIdx.x) % p.heads, batch = static_cast<int>(blockIdx.y);
  const int pitch = p.v_width + 2;
  const float* const parts =
      p.partial +
      ((static_cast<std::int64_t>(batch) * p.queries + query) * p.heads + head) * p.splits * pitch;
  float largest = -INFINITY;
  for (int i = 0; i < p.splits; ++i) largest = fmaxf(largest, parts[i * pitch + p.v_width]);
  const float base = largest == -INFINITY ? 0 : largest;
  float total = 0;
  for (int i = 0; i < p.splits; ++i)
    total += parts[i * pitch + p.v_width + 1] * exp2f(parts[i * pitch + p.v_width] - base);
  if (p.sinks != nullptr && total > 0) total += exp2f(fminf(p.sinks[head] * kLog2e - base, 126.0f));
  for (int channel = static_cast<int>(threadIdx.x); channel < p.v_width; channel += 64) {
    float value = 0;
    for (int i = 0; i < p.splits; ++i)
      value += parts[i * pitch + channel] * exp2f(parts[i * pitch + p.v_width] - base);
    p.out[batch * p.out_strides[0] + query * p.out_strides[1] + head * p.out_strides[2] + channel] =
        static_cast<T>(total > 0 ? value / total : 0);
  }
#endif
}

}  // namespace bda::inline v0::cuda

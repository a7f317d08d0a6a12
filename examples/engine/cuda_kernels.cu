#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "cuda_kernels.hpp"

namespace engine {
namespace {

constexpr int kLanes = 32;
constexpr int kWidest = 192;  // of a head

/// A block a new token.
template <class T>
__global__ void store_kernel(const T* k, const T* v, Pages<T> pages, std::int64_t past) {
  const std::int64_t token = blockIdx.x;
  for (std::int64_t c = threadIdx.x; c < pages.key_row; c += blockDim.x)
    pages.key(past + token)[c] = k[token * pages.key_row + c];
  for (std::int64_t c = threadIdx.x; c < pages.value_row; c += blockDim.x)
    pages.value(past + token)[c] = v[token * pages.value_row + c];
}

/// A warp a head and query; a lane has every 32nd channel. One pass with a running maximum.
template <class T>
__global__ void attend_kernel(const T* q, Pages<T> pages, PagedShape s, float scale, T* out) {
  constexpr int kEach = kWidest / kLanes;
  const std::int64_t head = blockIdx.x, token = blockIdx.y, row = token * s.heads + head;
  const std::int64_t kv_head = head / (s.heads / s.kv_heads);
  const int lane = static_cast<int>(threadIdx.x);
  float query[kEach], mixed[kEach] = {}, largest = -INFINITY, sum = 0;
  for (int c = 0; c < kEach; ++c) {
    const int channel = c * kLanes + lane;
    query[c] =
        channel < s.key_width ? scale * static_cast<float>(q[row * s.key_width + channel]) : 0.0f;
  }
  for (std::int64_t j = 0; j <= s.past + token; ++j) {
    const T* const key = pages.key(j) + kv_head * s.key_width;
    const T* const value = pages.value(j) + kv_head * s.value_width;
    float logit = 0;
    for (int c = 0; c < kEach; ++c) {
      const int channel = c * kLanes + lane;
      if (channel < s.key_width) logit += query[c] * static_cast<float>(key[channel]);
    }
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2)
      logit += __shfl_xor_sync(0xffffffffu, logit, lanes);
    const float top = fmaxf(largest, logit);
    const float old = expf(largest - top), weight = expf(logit - top);
    largest = top;
    sum = sum * old + weight;
    for (int c = 0; c < kEach; ++c) {
      const int channel = c * kLanes + lane;
      if (channel < s.value_width)
        mixed[c] = mixed[c] * old + weight * static_cast<float>(value[channel]);
    }
  }
  for (int c = 0; c < kEach; ++c) {
    const int channel = c * kLanes + lane;
    if (channel < s.value_width)
      out[row * s.value_width + channel] = static_cast<T>(mixed[c] / sum);
  }
}

/// One block. Of equal logits the first word.
__global__ void likeliest_kernel(const float* logits, std::int64_t vocab, std::int64_t* word) {
  __shared__ float best[1024];
  __shared__ std::int64_t at[1024];
  const auto thread = static_cast<int>(threadIdx.x);
  best[thread] = -INFINITY, at[thread] = 0;
  for (std::int64_t i = thread; i < vocab; i += blockDim.x)
    if (logits[i] > best[thread]) best[thread] = logits[i], at[thread] = i;
  for (int half = 512; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
    const int other = thread + half;
    if (best[other] > best[thread] || (best[other] == best[thread] && at[other] < at[thread]))
      best[thread] = best[other], at[thread] = at[other];
  }
  if (thread == 0) *word = at[0];
}

}  // namespace

template <class T>
void paged_attend(const T* q, const T* k, const T* v, const Pages<T>& pages,
                  const PagedShape& shape, float scale, T* out, cudaStream_t stream) {
  const auto tokens = static_cast<unsigned>(shape.tokens);
  store_kernel<<<tokens, 128, 0, stream>>>(k, v, pages, shape.past);
  attend_kernel<<<dim3(static_cast<unsigned>(shape.heads), tokens), kLanes, 0, stream>>>(
      q, pages, shape, scale, out);
}

void likeliest(const float* logits, std::int64_t vocab, std::int64_t* word, cudaStream_t stream) {
  likeliest_kernel<<<1, 1024, 0, stream>>>(logits, vocab, word);
}

template void paged_attend(const __half*, const __half*, const __half*, const Pages<__half>&,
                           const PagedShape&, float, __half*, cudaStream_t);
template void paged_attend(const __nv_bfloat16*, const __nv_bfloat16*, const __nv_bfloat16*,
                           const Pages<__nv_bfloat16>&, const PagedShape&, float, __nv_bfloat16*,
                           cudaStream_t);

}  // namespace engine

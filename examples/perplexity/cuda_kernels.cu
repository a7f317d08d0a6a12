#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>

#include "bda/core/error.hpp"
#include "cuda_kernels.hpp"

namespace perplexity {
namespace {

constexpr int kThreads = 256;

void check_launch() {
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess)
    throw bda::Error("kernel launch", "success", cudaGetErrorString(error));
}
unsigned blocks(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

/// The sum over a block of kThreads, for all of them.
template <class C>
__device__ C block_sum(C value) {
  __shared__ C parts[kThreads / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  C sum = 0;
  for (C part : parts) sum += part;
  return sum;
}

template <class T>
__global__ void embed_kernel(const T* embedding, const T* positions, const std::int64_t* tokens,
                             std::int64_t rows, std::int64_t length, std::int64_t width, float* x) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= rows * width) return;
  const std::int64_t row = at / width, column = at % width;
  float value = static_cast<float>(embedding[tokens[row] * width + column]);
  if (positions != nullptr) value += static_cast<float>(positions[row % length * width + column]);
  x[at] = value;
}

/// A block a row.
template <class T>
__global__ void norm_kernel(bool center, const float* x, const T* weight, const T* bias,
                            float epsilon, std::int64_t width, T* y) {
  const float* const from = x + blockIdx.x * width;
  float sum = 0;
  if (center)
    for (std::int64_t i = threadIdx.x; i < width; i += kThreads) sum += from[i];
  const float mean = center ? block_sum(sum) / static_cast<float>(width) : 0.0f;
  float squares = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads)
    squares += (from[i] - mean) * (from[i] - mean);
  const float factor = rsqrtf(block_sum(squares) / static_cast<float>(width) + epsilon);
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads)
    y[blockIdx.x * width + i] =
        static_cast<T>((from[i] - mean) * factor * static_cast<float>(weight[i]) +
                       (bias == nullptr ? 0.0f : static_cast<float>(bias[i])));
}

template <class T>
__global__ void add_kernel(const T* y, std::int64_t count, float* x) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < count) x[at] += static_cast<float>(y[at]);
}

template <class T>
__global__ void activate_kernel(bda::checkpoint::Activation kind, const T* factor,
                                std::int64_t count, T* x) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= count) return;
  const float v = static_cast<float>(x[at]);
  float result = 0;
  switch (kind) {
    case bda::checkpoint::Activation::kSilu:
      result = v / (1 + expf(-v));
      break;
    case bda::checkpoint::Activation::kGelu:
      result = v * normcdff(v);
      break;
    case bda::checkpoint::Activation::kGeluTanh:
      result = v / (1 + expf(-1.5957691216057308f * (v + 0.044715f * v * v * v)));
      break;
  }
  x[at] = static_cast<T>(factor == nullptr ? result : result * static_cast<float>(factor[at]));
}

/// A block a row.
__global__ void losses_kernel(const float* logits, const std::int64_t* targets, std::int64_t vocab,
                              double* losses) {
  const float* const row = logits + blockIdx.x * vocab;
  const std::int64_t target = targets[blockIdx.x];
  if (target < 0) {
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    return;
  }
  __shared__ float largest_parts[kThreads / 32];
  float largest = row[0];
  for (std::int64_t i = threadIdx.x; i < vocab; i += kThreads) largest = fmaxf(largest, row[i]);
  for (int lanes = 16; lanes > 0; lanes /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
  if (threadIdx.x % 32 == 0) largest_parts[threadIdx.x / 32] = largest;
  __syncthreads();
  for (float part : largest_parts) largest = fmaxf(largest, part);
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < vocab; i += kThreads)
    sum += static_cast<double>(expf(row[i] - largest));
  sum = block_sum(sum);
  if (threadIdx.x == 0)
    losses[blockIdx.x] = log(sum) + static_cast<double>(largest) - static_cast<double>(row[target]);
}

}  // namespace

template <class T>
void embed(const T* embedding, const T* positions, const std::int64_t* tokens, std::int64_t rows,
           std::int64_t length, std::int64_t width, float* x, cudaStream_t stream) {
  embed_kernel<<<blocks(rows * width), kThreads, 0, stream>>>(embedding, positions, tokens, rows,
                                                              length, width, x);
  check_launch();
}

template <class T>
void norm(bda::checkpoint::NormKind kind, const float* x, const T* weight, const T* bias,
          float epsilon, std::int64_t rows, std::int64_t width, T* y, cudaStream_t stream) {
  norm_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
      kind == bda::checkpoint::NormKind::kLayer, x, weight, bias, epsilon, width, y);
  check_launch();
}

template <class T>
void add(const T* y, std::int64_t count, float* x, cudaStream_t stream) {
  add_kernel<<<blocks(count), kThreads, 0, stream>>>(y, count, x);
  check_launch();
}

template <class T>
void activate(bda::checkpoint::Activation kind, const T* factor, std::int64_t count, T* x,
              cudaStream_t stream) {
  activate_kernel<<<blocks(count), kThreads, 0, stream>>>(kind, factor, count, x);
  check_launch();
}

void losses(const float* logits, const std::int64_t* targets, std::int64_t rows, std::int64_t vocab,
            double* losses, cudaStream_t stream) {
  losses_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(logits, targets, vocab,
                                                                      losses);
  check_launch();
}

#define PERPLEXITY_INSTANTIATE(T)                                                             \
  template void embed<T>(const T*, const T*, const std::int64_t*, std::int64_t, std::int64_t, \
                         std::int64_t, float*, cudaStream_t);                                 \
  template void norm<T>(bda::checkpoint::NormKind, const float*, const T*, const T*, float,   \
                        std::int64_t, std::int64_t, T*, cudaStream_t);                        \
  template void add<T>(const T*, std::int64_t, float*, cudaStream_t);                         \
  template void activate<T>(bda::checkpoint::Activation, const T*, std::int64_t, T*, cudaStream_t);
PERPLEXITY_INSTANTIATE(__half)
PERPLEXITY_INSTANTIATE(__nv_bfloat16)

}  // namespace perplexity

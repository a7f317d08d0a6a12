#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "reference.hpp"

// The attention step in double precision, one thread an element of out.
namespace bda_test {
namespace {

template <class T>
struct Operands {
  const T *q, *k, *v, *out;
  std::int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3];
  const std::int32_t* key_lengths;
  const float* sinks;
  std::int64_t batch, queries, keys, heads, group, qk, width;
  double scale, softcap;
  bool causal;
  std::int64_t window;
  double unit, smallest;  // unit roundoff of T, and the spacing of its subnormals
};

template <class T>
__device__ double at(const T* data, const std::int64_t (&strides)[3], std::int64_t b,
                     std::int64_t token, std::int64_t head, std::int64_t channel) {
  return static_cast<double>(
      static_cast<float>(data[b * strides[0] + token * strides[1] + head * strides[2] + channel]));
}

// The score of a key, and the size of what its rounding errors are relative to.
template <class T>
__device__ double score(const Operands<T>& p, std::int64_t b, std::int64_t i, std::int64_t h,
                        std::int64_t j, double& size) {
  double dot = 0;
  size = 0;
  for (std::int64_t c = 0; c < p.qk; ++c) {
    const double term =
        at(p.q, p.q_strides, b, i, h, c) * at(p.k, p.k_strides, b, j, h / p.group, c);
    dot += term;
    size += fabs(term);
  }
  size *= p.scale;
  const double s = dot * p.scale;
  return p.softcap > 0 ? p.softcap * tanh(s / p.softcap) : s;
}

template <class T>
__device__ bool visible(const Operands<T>& p, std::int64_t b, std::int64_t i, std::int64_t j) {
  const std::int64_t position = i + p.keys - p.queries;
  return (p.key_lengths == nullptr || j < p.key_lengths[b]) && (!p.causal || j <= position) &&
         (p.window == 0 || position - j < p.window);
}

template <class T>
__global__ void compare_kernel(Operands<T> p, Comparison* result) {
  const std::int64_t rows = p.batch * p.queries * p.heads;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const std::int64_t h = row % p.heads, i = row / p.heads % p.queries,
                       b = row / p.heads / p.queries;
    // Every thread for itself: slow, and right.
    double most = -INFINITY, error = 0, total = 0, size = 0;
    for (std::int64_t j = 0; j < p.keys; ++j)
      if (visible(p, b, i, j)) most = fmax(most, score(p, b, i, h, j, size));
    const double base = most == -INFINITY ? 0 : most;
    double sum = 0, weighted = 0, values = 0;
    const std::int64_t c = threadIdx.x;
    for (std::int64_t j = 0; j < p.keys; ++j) {
      if (!visible(p, b, i, j)) continue;
      const double s = score(p, b, i, h, j, size), weight = exp(s - base);
      // Products summed in fp32, by tensor cores that may truncate; the score scaled, the largest
      // one taken off, the exponential itself: two units of fp32 each.
      error = fmax(error, static_cast<double>(p.qk) * 0x1p-23 * size + 8 * 0x1p-24 * fabs(s) +
                              8 * 0x1p-24 * fabs(base) + 0x1p-21);
      sum += weight;
      if (c < p.width) {
        const double v = at(p.v, p.v_strides, b, j, h / p.group, c);
        weighted += weight * v;
        values += weight * fabs(v);
        total += fabs(v);
      }
    }
    if (c >= p.width) continue;
    double denominator = sum;
    if (p.sinks != nullptr && sum > 0) denominator += exp(p.sinks[h] - base);
    const double want = sum > 0 ? weighted / denominator : 0;
    const double bound =
        sum > 0 ? (p.unit + 2 * error + static_cast<double>(p.keys + 64) * 0x1p-23) * values /
                          denominator +
                      p.smallest * total / denominator + p.unit * fabs(want) + p.smallest
                : 0;
    const double got = at(p.out, p.out_strides, b, i, h, c);
    const double off = fabs(got - want);
    atomicAdd(&result->checked, 1ull);
    if (!(off <= bound)) atomicAdd(&result->wrong, 1ull);
    if (bound > 0)  // of positive doubles the bits are in order
      atomicMax(reinterpret_cast<unsigned long long*>(&result->worst),
                static_cast<unsigned long long>(__double_as_longlong(off / bound)));
  }
}

template <class T>
__global__ void count_poison(const T* data, std::int64_t count, Comparison* result) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x)
    if (reinterpret_cast<const std::uint16_t*>(data)[i] == 0xffffu)
      atomicAdd(&result->poisoned, 1ull);
}

}  // namespace

template <class T>
Comparison compare_attend(const bda::cuda::AttendArguments<T>& args, const T* buffer,
                          std::int64_t elements) {
  Comparison* device = nullptr;
  Comparison host;
  host.wrong = ~0ull;  // what a failed launch leaves
  if (cudaMalloc(&device, sizeof(Comparison)) != cudaSuccess) return host;
  cudaMemset(device, 0, sizeof(Comparison));
  const bool half = args.shape().dtype == bda::DType::kF16;
  Operands<T> p{};
  p.q = args.q.data;
  p.k = args.k.data;
  p.v = args.v.data;
  p.out = args.out.data;
  for (int i = 0; i < 3; ++i) {
    p.q_strides[i] = args.q.stride(i);
    p.k_strides[i] = args.k.stride(i);
    p.v_strides[i] = args.v.stride(i);
    p.out_strides[i] = args.out.stride(i);
  }
  p.key_lengths = args.key_lengths;
  p.sinks = args.sinks;
  p.batch = args.shape().batch;
  p.queries = args.shape().queries;
  p.keys = args.shape().keys;
  p.heads = args.shape().heads;
  p.group = args.shape().group();
  p.qk = args.shape().qk_width;
  p.width = args.shape().v_width;
  p.scale = args.scale;
  p.softcap = args.softcap;
  p.causal = args.causal;
  p.window = args.window;
  p.unit = half ? 0x1p-11 : 0x1p-8;
  p.smallest = half ? 0x1p-24 : 0x1p-133;
  compare_kernel<T><<<4096, static_cast<unsigned>(p.width)>>>(p, device);
  count_poison<T><<<512, 256>>>(buffer, elements, device);
  if (cudaDeviceSynchronize() == cudaSuccess)
    cudaMemcpy(&host, device, sizeof(Comparison), cudaMemcpyDeviceToHost);
  cudaFree(device);
  return host;
}

template Comparison compare_attend<__half>(const bda::cuda::AttendArguments<__half>&, const __half*,
                                           std::int64_t);
template Comparison compare_attend<__nv_bfloat16>(const bda::cuda::AttendArguments<__nv_bfloat16>&,
                                                  const __nv_bfloat16*, std::int64_t);

}  // namespace bda_test

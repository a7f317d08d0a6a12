#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "reference.hpp"

namespace bda_test {
namespace {

template <class T>
__global__ void fill_kernel(T* data, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                            std::uint64_t seed, float scale) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * columns;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    // splitmix64, then Box-Muller.
    std::uint64_t z =
        (static_cast<std::uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    const float u = (static_cast<float>(z >> 40) + 1.0f) * 0x1p-24f;
    const float v = static_cast<float>(z & 0xffffffu) * 0x1p-24f;
    data[i / columns * stride + i % columns] =
        static_cast<T>(scale * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
  }
}

/// The bound on |out - exact|, with s the exact value and a = |x_S| + |b| + sum |x| |C|:
/// rounding the result to T costs u |s| (plus half the smallest subnormal). The fp32 sum: a tensor
/// core adds 16 products and the accumulator, each of the 17 terms cut to no less than 2^-23 of the
/// largest, which is at most a; an fp32 chain rounds each of its steps by 2^-24 of at most a. With
/// rest + 32 terms in all (basis, bias, splits), 2^-23 (rest + 32) a covers both.
struct Operands {  // of ProjectionArguments, as plain values for the device
  std::int64_t tokens, rest, width, columns, begin, x_stride, token_stride, head_stride;
  double unit;  // unit roundoff of T
};

template <class T>
__global__ void compare_kernel(Operands p, const T* x_data, const T* coefficients, const T* bias,
                               const T* out_data, Comparison* result) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       i < p.tokens * p.columns; i += std::int64_t{gridDim.x} * blockDim.x) {
    const std::int64_t token = i / p.columns, column = i % p.columns;
    const T* x = x_data + token * p.x_stride;
    double sum = static_cast<double>(static_cast<float>(x[p.begin + column % p.width]));
    double size = fabs(sum);
    if (bias != nullptr) {
      const double b = static_cast<double>(static_cast<float>(bias[column]));
      sum += b;
      size += fabs(b);
    }
    for (std::int64_t k = 0; k < p.rest; ++k) {
      const double v =
          static_cast<double>(static_cast<float>(x[k < p.begin ? k : k + p.width])) *
          static_cast<double>(static_cast<float>(coefficients[k * p.columns + column]));
      sum += v;
      size += fabs(v);
    }
    const double out = static_cast<double>(static_cast<float>(
        out_data[token * p.token_stride + column / p.width * p.head_stride + column % p.width]));
    const double bound =
        p.unit * fabs(sum) + 0x1p-23 * static_cast<double>(p.rest + 32) * size + 0x1p-25;
    const double error = fabs(out - sum);
    atomicAdd(&result->checked, 1ull);
    if (!(error <= bound)) atomicAdd(&result->wrong, 1ull);
    if (error == error)
      atomicMax(reinterpret_cast<unsigned long long*>(&result->worst),
                static_cast<unsigned long long>(__double_as_longlong(error / bound)));
  }
}

/// One side of attention-ready output. What is stored in T obeys the bound above, the rope part is
/// a copy. e4m3: the bound is half the spacing of e4m3 at the value, besides what the sum (or its
/// rounding to T) and the division by the scale are off, both in units of the scale.
struct ReadyOperands {
  std::int64_t tokens, heads, rest, width, rope_width, begin, x_stride, rope_stride;
  bda::cuda::KvOutput out;
  double unit, unit_before;  // unit roundoffs of T and of what e4m3 is rounded from
};

__device__ double e4m3_half_spacing(double value) {
  return exp2(floor(log2(fmax(fabs(value), 0x1p-6))) - 4.0);
}

template <class T>
__global__ void compare_ready_kernel(ReadyOperands p, const T* x_data, const T* rope,
                                     const T* coefficients, const T* bias, Comparison* result) {
  const std::int64_t row = p.width + p.rope_width, columns = p.heads * p.width;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       i < p.tokens * p.heads * row; i += std::int64_t{gridDim.x} * blockDim.x) {
    const std::int64_t token = i / (p.heads * row), head = i / row % p.heads, channel = i % row;
    std::int64_t at = head * p.out.head_stride + channel;
    if (p.out.slots != nullptr) {
      const std::int64_t slot = p.out.slots[token];
      if (slot < 0) continue;
      at +=
          slot / p.out.page_size * p.out.page_stride + slot % p.out.page_size * p.out.token_stride;
    } else {
      at += token * p.out.token_stride;
    }
    double sum, slack = 0, unit = 0;
    if (channel < p.width) {
      const T* x = x_data + token * p.x_stride;
      const std::int64_t column = head * p.width + channel;
      sum = static_cast<double>(static_cast<float>(x[p.begin + channel]));
      double size = fabs(sum);
      if (bias != nullptr) {
        const double b = static_cast<double>(static_cast<float>(bias[column]));
        sum += b;
        size += fabs(b);
      }
      for (std::int64_t k = 0; k < p.rest; ++k) {
        const double v =
            static_cast<double>(static_cast<float>(x[k < p.begin ? k : k + p.width])) *
            static_cast<double>(static_cast<float>(coefficients[k * columns + column]));
        sum += v;
        size += fabs(v);
      }
      slack = 0x1p-23 * static_cast<double>(p.rest + 32) * size + 0x1p-25;
      unit = p.unit;
    } else {
      sum =
          static_cast<double>(static_cast<float>(rope[token * p.rope_stride + channel - p.width]));
    }
    double error, bound;
    if (p.out.element == bda::cuda::KvElement::kE4m3) {
      const double scale = p.out.scale == nullptr
                               ? 1.0
                               : static_cast<double>(p.out.scale[p.out.scale_per_head ? head : 0]);
      const auto bits = static_cast<const __nv_fp8_storage_t*>(p.out.data)[at];
      const double out =
          static_cast<double>(static_cast<float>(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3))));
      const double want = fmin(fmax(sum / scale, -448.0), 448.0);
      const double off = (slack + p.unit_before * fabs(sum)) / scale + 0x1p-22 * fabs(want);
      error = fabs(out - want);
      bound = e4m3_half_spacing(fabs(want) + off) + off;
    } else {
      const double out =
          static_cast<double>(static_cast<float>(static_cast<const T*>(p.out.data)[at]));
      error = fabs(out - sum);
      bound = unit * fabs(sum) + slack;
    }
    atomicAdd(&result->checked, 1ull);
    if (!(error <= bound)) atomicAdd(&result->wrong, 1ull);
    if (error == error && bound > 0)
      atomicMax(reinterpret_cast<unsigned long long*>(&result->worst),
                static_cast<unsigned long long>(__double_as_longlong(error / bound)));
  }
}

/// The first bound again; a query's channels at S are copies. Sums have `width` or `rest` terms.
struct AbsorbedOperands {
  bool query;
  std::int64_t tokens, heads, rest, width, begin, x_token, x_head, out_token, out_head;
  double unit;
};

template <class T>
__global__ void compare_absorbed_kernel(AbsorbedOperands p, const T* x_data, const T* coefficients,
                                        const T* bias, const T* out_data, Comparison* result) {
  const std::int64_t row = p.query ? p.rest + p.width : p.width, columns = p.heads * p.width;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       i < p.tokens * p.heads * row; i += std::int64_t{gridDim.x} * blockDim.x) {
    const std::int64_t token = i / (p.heads * row), head = i / row % p.heads, channel = i % row;
    const T* x = x_data + token * p.x_token + head * p.x_head;
    const auto value = [](T v) { return static_cast<double>(static_cast<float>(v)); };
    double sum = 0, size = 0, bound = 0;
    const auto add = [&](double v) {
      sum += v;
      size += fabs(v);
    };
    if (p.query && channel >= p.begin && channel < p.begin + p.width) {
      sum = value(x[channel - p.begin]);
    } else {
      if (p.query) {
        const std::int64_t c = channel < p.begin ? channel : channel - p.width;
        for (std::int64_t k = 0; k < p.width; ++k)
          add(value(x[k]) * value(coefficients[c * columns + head * p.width + k]));
      } else {
        add(value(x[p.begin + channel]));
        if (bias != nullptr) add(value(bias[head * p.width + channel]));
        for (std::int64_t k = 0; k < p.rest; ++k)
          add(value(x[k < p.begin ? k : k + p.width]) *
              value(coefficients[k * columns + head * p.width + channel]));
      }
      bound = p.unit * fabs(sum) +
              0x1p-23 * static_cast<double>((p.query ? p.width : p.rest) + 32) * size + 0x1p-25;
    }
    const double error =
        fabs(value(out_data[token * p.out_token + head * p.out_head + channel]) - sum);
    atomicAdd(&result->checked, 1ull);
    if (!(error <= bound)) atomicAdd(&result->wrong, 1ull);
    if (error == error && bound > 0)
      atomicMax(reinterpret_cast<unsigned long long*>(&result->worst),
                static_cast<unsigned long long>(__double_as_longlong(error / bound)));
  }
}

template <class T>
__global__ void count_poison(const T* buffer, std::int64_t elements, Comparison* result) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(buffer + i);
    bool poisoned = true;
    for (unsigned b = 0; b < sizeof(T); ++b) poisoned = poisoned && bytes[b] == kPoison;
    if (poisoned) atomicAdd(&result->poisoned, 1ull);
  }
}

}  // namespace

template <class T>
void fill_normal(T* data, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                 std::uint64_t seed, float scale) {
  fill_kernel<<<512, 256>>>(data, rows, columns, stride, seed, scale);
  cudaDeviceSynchronize();  // for streams that do not wait for the default one
}

template <class T>
Comparison compare(const bda::cuda::ProjectionArguments<T>& args, const T* coefficients,
                   const T* buffer, std::int64_t elements) {
  Comparison* device = nullptr;
  Comparison host;
  host.wrong = ~0ull;  // what a failed launch leaves
  if (cudaMalloc(&device, sizeof(Comparison)) != cudaSuccess) return host;
  cudaMemset(device, 0, sizeof(Comparison));
  const double unit = sizeof(T) == 4                           ? 0x1p-24
                      : args.shape().dtype == bda::DType::kF16 ? 0x1p-11
                                                               : 0x1p-8;
  const Operands operands{args.x.extent(0),       args.packing.rest,  args.packing.width,
                          args.packing.columns(), args.basis_begin,   args.x.stride(0),
                          args.out.stride(0),     args.out.stride(1), unit};
  compare_kernel<T>
      <<<2048, 256>>>(operands, args.x.data, coefficients, args.bias, args.out.data, device);
  count_poison<T><<<512, 256>>>(buffer, elements, device);
  if (cudaDeviceSynchronize() == cudaSuccess)
    cudaMemcpy(&host, device, sizeof(Comparison), cudaMemcpyDeviceToHost);
  cudaFree(device);
  return host;
}

template <class T>
Comparison compare(const bda::cuda::AttentionReadyArguments<T>& args, bool is_key,
                   const T* coefficients, const void* buffer, std::int64_t elements,
                   bool rounded_before) {
  Comparison* device = nullptr;
  Comparison host;
  host.wrong = ~0ull;  // what a failed launch leaves
  if (cudaMalloc(&device, sizeof(Comparison)) != cudaSuccess) return host;
  cudaMemset(device, 0, sizeof(Comparison));
  const double unit = sizeof(T) == 4                           ? 0x1p-24
                      : args.shape().dtype == bda::DType::kF16 ? 0x1p-11
                                                               : 0x1p-8;
  const bda::cuda::KvSide<T>& side = is_key ? *args.key : *args.value;
  const ReadyOperands operands{args.latent.extent(0),
                               side.packing.heads,
                               side.packing.rest,
                               side.packing.width,
                               is_key ? args.rope_width() : 0,
                               side.basis_begin,
                               args.latent.stride(0),
                               args.rope.stride(0),
                               side.out,
                               unit,
                               rounded_before ? unit : 0.0};
  compare_ready_kernel<T>
      <<<2048, 256>>>(operands, args.latent.data, args.rope.data, coefficients, side.bias, device);
  if (side.out.element == bda::cuda::KvElement::kE4m3)
    count_poison<<<512, 256>>>(static_cast<const unsigned char*>(buffer), elements, device);
  else
    count_poison<<<512, 256>>>(static_cast<const T*>(buffer), elements, device);
  if (cudaDeviceSynchronize() == cudaSuccess)
    cudaMemcpy(&host, device, sizeof(Comparison), cudaMemcpyDeviceToHost);
  cudaFree(device);
  return host;
}

template <class T>
Comparison compare(const bda::cuda::AbsorbedArguments<T>& args, const T* coefficients,
                   const T* buffer, std::int64_t elements) {
  Comparison* device = nullptr;
  Comparison host;
  host.wrong = ~0ull;  // what a failed launch leaves
  if (cudaMalloc(&device, sizeof(Comparison)) != cudaSuccess) return host;
  cudaMemset(device, 0, sizeof(Comparison));
  const double unit = sizeof(T) == 4                           ? 0x1p-24
                      : args.shape().dtype == bda::DType::kF16 ? 0x1p-11
                                                               : 0x1p-8;
  const AbsorbedOperands operands{args.product == bda::cuda::AbsorbedProduct::kQuery,
                                  args.x.extent(0),
                                  args.packing.heads,
                                  args.packing.rest,
                                  args.packing.width,
                                  args.basis_begin,
                                  args.x.stride(0),
                                  args.x.stride(1),
                                  args.out.stride(0),
                                  args.out.stride(1),
                                  unit};
  compare_absorbed_kernel<T>
      <<<2048, 256>>>(operands, args.x.data, coefficients, args.bias, args.out.data, device);
  count_poison<T><<<512, 256>>>(buffer, elements, device);
  if (cudaDeviceSynchronize() == cudaSuccess)
    cudaMemcpy(&host, device, sizeof(Comparison), cudaMemcpyDeviceToHost);
  cudaFree(device);
  return host;
}

#define BDA_TEST_INSTANTIATE(T)                                                                \
  template void fill_normal<T>(T*, std::int64_t, std::int64_t, std::int64_t, std::uint64_t,    \
                               float);                                                         \
  template Comparison compare<T>(const bda::cuda::ProjectionArguments<T>&, const T*, const T*, \
                                 std::int64_t);                                                \
  template Comparison compare<T>(const bda::cuda::AttentionReadyArguments<T>&, bool, const T*, \
                                 const void*, std::int64_t, bool);                             \
  template Comparison compare<T>(const bda::cuda::AbsorbedArguments<T>&, const T*, const T*,   \
                                 std::int64_t);
BDA_TEST_INSTANTIATE(__half)
BDA_TEST_INSTANTIATE(__nv_bfloat16)
BDA_TEST_INSTANTIATE(float)

}  // namespace bda_test

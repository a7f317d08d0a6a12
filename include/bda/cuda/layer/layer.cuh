#pragma once

#include <algorithm>
#include <cstdint>

#include "bda/cuda/layer/layer.hpp"
#include "bda/cuda/projection/projection.cuh"
#include "bda/cuda/ptx/matrix.cuh"

/// The bodies of layer.hpp.
namespace bda::inline v0::cuda {
namespace detail {

/// A TensorView as device code can read it: std::array's operator[] is the host's.
template <class T, int Rank>
struct DeviceView {
  T* data;
  std::int64_t extents[Rank], strides[Rank];

  explicit DeviceView(const TensorView<T, Rank>& view) : data(view.data) {
    for (int i = 0; i < Rank; ++i) {
      extents[i] = view.extent(i);
      strides[i] = view.stride(i);
    }
  }
};

/// Row `row` of a view, rows counted over all dimensions but the last.
template <class T>
__device__ __forceinline__ T* row_of(const DeviceView<T, 4>& view, std::int64_t row) {
  const std::int64_t heads = view.extents[2], tokens = view.extents[1];
  return view.data + row / heads / tokens * view.strides[0] +
         row / heads % tokens * view.strides[1] + row % heads * view.strides[2];
}

/// A warp a row.
template <class T>
__global__ void __launch_bounds__(256)
    rms_norm_kernel(const DeviceView<const T, 4> x, const T* weight, float epsilon,
                    const DeviceView<T, 4> out, std::int64_t rows) {
  const std::int64_t row = std::int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, width = static_cast<int>(x.extents[3]);
  const T* const from = row_of(x, row);
  T* const to = row_of(out, row);
  float sum = 0;
  for (int i = lane; i < width; i += 32) {
    const float v = static_cast<float>(from[i]);
    sum += v * v;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  const float factor = rsqrtf(sum / static_cast<float>(width) + epsilon);
  for (int i = lane; i < width; i += 32)
    to[i] = static_cast<T>(static_cast<float>(from[i]) * factor * static_cast<float>(weight[i]));
}

constexpr int kRotatePairs = 128;  // at most

/// A CTA a token: the angles in double once, then all heads, 8 pairs a thread.
template <class T>
__global__ void __launch_bounds__(256)
    rotate_kernel(const DeviceView<T, 4> x, const double* frequencies, bool interleaved,
                  double magnitude, std::int64_t first_position) {
  __shared__ float sines[kRotatePairs], cosines[kRotatePairs];
  const int pairs = static_cast<int>(x.extents[3] / 2), t = static_cast<int>(threadIdx.x);
  const std::int64_t token = blockIdx.x % x.extents[1], batch = blockIdx.x / x.extents[1];
  if (t < pairs) {
    double sine = 0, cosine = 0;
    sincos(static_cast<double>(first_position + token) * frequencies[t], &sine, &cosine);
    sines[t] = static_cast<float>(sine * magnitude);
    cosines[t] = static_cast<float>(cosine * magnitude);
  }
  __syncthreads();
  T* const row = x.data + batch * x.strides[0] + token * x.strides[1];
  const int steps = pairs / 4;  // of 8 channels, in a head
  const auto turn = [&](T& first, T& second, int pair) {
    const float a = static_cast<float>(first), b = static_cast<float>(second);
    first = static_cast<T>(a * cosines[pair] - b * sines[pair]);
    second = static_cast<T>(a * sines[pair] + b * cosines[pair]);
  };
  if (interleaved) {
    for (int i = t; i < steps * static_cast<int>(x.extents[2]); i += 256) {
      uint4* const at = reinterpret_cast<uint4*>(row + i / steps * x.strides[2]) + i % steps;
      uint4 words = *at;
      T* const values = reinterpret_cast<T*>(&words);
      for (int e = 0; e < 4; ++e) turn(values[2 * e], values[2 * e + 1], i % steps * 4 + e);
      *at = words;
    }
    return;
  }
  // A pair lies half a head apart: neighbours in a warp are neighbours in memory.
  for (int i = t; i < pairs * static_cast<int>(x.extents[2]); i += 256) {
    T* const head = row + i / pairs * x.strides[2];
    turn(head[i % pairs], head[i % pairs + pairs], i % pairs);
  }
}

/// 8 channels a thread.
template <class T>
__global__ void __launch_bounds__(256)
    copy_rows_kernel(const DeviceView<const T, 4> from, const DeviceView<T, 4> to,
                     std::int64_t count) {
  const std::int64_t at = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= count) return;
  const std::int64_t steps = to.extents[3] / 8;
  reinterpret_cast<uint4*>(row_of(to, at / steps))[at % steps] =
      reinterpret_cast<const uint4*>(row_of(from, at / steps))[at % steps];
}

template <class T>
struct OtherHalf;  // of the two 16-bit types
template <>
struct OtherHalf<__half> {
  using type = __nv_bfloat16;
};
template <>
struct OtherHalf<__nv_bfloat16> {
  using type = __half;
};

/// 8 channels a thread.
template <class From, class To>
__global__ void __launch_bounds__(256)
    cast_rows_kernel(const DeviceView<const From, 3> from, const DeviceView<To, 3> to,
                     std::int64_t count) {
  const std::int64_t at = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= count) return;
  const std::int64_t steps = to.extents[2] / 8, row = at / steps, channel = at % steps * 8;
  const std::int64_t batch = row / to.extents[1], token = row % to.extents[1];
  const uint4 read = *reinterpret_cast<const uint4*>(from.data + batch * from.strides[0] +
                                                     token * from.strides[1] + channel);
  const auto cast = [](std::uint32_t pair) {
    const float2 v = ptx::unpack_pair<From>(pair);
    return ptx::pack_pair<To>(v.x, v.y);
  };
  *reinterpret_cast<uint4*>(to.data + batch * to.strides[0] + token * to.strides[1] + channel) =
      make_uint4(cast(read.x), cast(read.y), cast(read.z), cast(read.w));
}

template <class T>
__global__ void __launch_bounds__(256)
    gather_columns_kernel(const DeviceView<const T, 2> x, const std::int32_t* columns,
                          const DeviceView<T, 2> out, std::int64_t count) {
  const std::int64_t at = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= count) return;
  const std::int64_t row = at / out.extents[1], column = at % out.extents[1];
  out.data[row * out.strides[0] + column] = x.data[row * x.strides[0] + columns[column]];
}

/// As many lengths as go along with one launch.
struct Lengths {
  static constexpr int kCount = 512;
  std::int32_t values[kCount];
};
template <class T>
__global__ void __launch_bounds__(Lengths::kCount)
    set_lengths_kernel(const __grid_constant__ Lengths lengths, std::int32_t* to, int count) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < count) to[i] = lengths.values[i];
}

/// Launches `kernel` with one thread for each of `count`, if any.
template <class... Params>
Status launch_over(const char* name, void (*kernel)(Params...), std::int64_t count, int threads,
                   cudaStream_t stream, const Params&... params) {
  if (count == 0) return {};
  const std::int64_t blocks = ceil_div(count, threads);
  if (blocks > 0x7fffffff) return Status::invalid(name, "blocks at most", 0x7fffffff, blocks);
  return launch(name, kernel, {dim3(to_grid(blocks)), threads, 0}, false, stream, params...);
}

}  // namespace detail

template <class T>
Status rms_norm(const TensorView<const T, 4>& x, const T* weight, float epsilon,
                const TensorView<T, 4>& out, cudaStream_t stream) {
  const std::int64_t rows = x.extent(0) * x.extent(1) * x.extent(2);
  return detail::launch_over("rms_norm launch", detail::rms_norm_kernel<T>, rows * 32, 256, stream,
                             detail::DeviceView(x), weight, epsilon, detail::DeviceView(out), rows);
}

template <class T>
Status rotate(const TensorView<T, 4>& x, const double* frequencies, bool interleaved,
              double magnitude, std::int64_t first_position, cudaStream_t stream) {
  if (x.extent(3) % 8 != 0 || x.extent(3) > 2 * detail::kRotatePairs)
    return Status::invalid("x.extent(3)", "a multiple of 8, at most", 2 * detail::kRotatePairs,
                           x.extent(3));
  const std::int64_t tokens = x.extent(0) * x.extent(1);
  if (tokens == 0) return {};
  if (tokens > 0x7fffffff)
    return Status::invalid("rotate launch", "tokens at most", 0x7fffffff, tokens);
  return detail::launch("rotate launch", detail::rotate_kernel<T>,
                        {dim3(detail::to_grid(tokens)), 256, 0}, false, stream,
                        detail::DeviceView(x), frequencies, interleaved, magnitude, first_position);
}

template <class T>
Status copy_rows(const TensorView<const T, 4>& from, const TensorView<T, 4>& to,
                 cudaStream_t stream) {
  if (to.extent(3) % 8 != 0)
    return Status::invalid("to.extent(3)", "a multiple of", 8, to.extent(3));
  return detail::launch_over("copy_rows launch", detail::copy_rows_kernel<T>, to.size() / 8, 256,
                             stream, detail::DeviceView(from), detail::DeviceView(to),
                             to.size() / 8);
}

template <class From, class To>
Status cast_rows(const TensorView<const From, 3>& from, const TensorView<To, 3>& to,
                 cudaStream_t stream) {
  if (to.extent(2) % 8 != 0)
    return Status::invalid("to.extent(2)", "a multiple of", 8, to.extent(2));
  return detail::launch_over("cast_rows launch", detail::cast_rows_kernel<From, To>, to.size() / 8,
                             256, stream, detail::DeviceView(from), detail::DeviceView(to),
                             to.size() / 8);
}

template <class T>
Status gather_columns(const TensorView<const T, 2>& x, const std::int32_t* columns,
                      const TensorView<T, 2>& out, cudaStream_t stream) {
  return detail::launch_over("gather_columns launch", detail::gather_columns_kernel<T>, out.size(),
                             256, stream, detail::DeviceView(x), columns, detail::DeviceView(out),
                             out.size());
}

template <class T>
Status set_lengths(const std::int64_t* lengths, std::int64_t count, std::int32_t* to,
                   cudaStream_t stream) {
  constexpr int kCount = detail::Lengths::kCount;
  for (std::int64_t first = 0; first < count; first += kCount) {
    const int part = static_cast<int>(std::min<std::int64_t>(kCount, count - first));
    detail::Lengths values{};
    for (int i = 0; i < part; ++i) values.values[i] = static_cast<std::int32_t>(lengths[first + i]);
    if (Status s = detail::launch("set_lengths launch", detail::set_lengths_kernel<T>,
                                  {dim3(1), kCount, 0}, false, stream, values, to + first, part);
        !s.ok())
      return s;
  }
  return {};
}

}  // namespace bda::inline v0::cuda

/// Puts the entry points for element type T, and their kernels, into this translation unit.
#define BDA_INSTANTIATE_CUDA_LAYER(T)                                                              \
  template ::bda::Status bda::cuda::rms_norm<T>(const ::bda::TensorView<const T, 4>&, const T*,    \
                                                float, const ::bda::TensorView<T, 4>&,             \
                                                cudaStream_t);                                     \
  template ::bda::Status bda::cuda::rotate<T>(const ::bda::TensorView<T, 4>&, const double*, bool, \
                                              double, std::int64_t, cudaStream_t);                 \
  template ::bda::Status bda::cuda::copy_rows<T>(const ::bda::TensorView<const T, 4>&,             \
                                                 const ::bda::TensorView<T, 4>&, cudaStream_t);    \
  template ::bda::Status bda::cuda::cast_rows<T>(                                                  \
      const ::bda::TensorView<const T, 3>&,                                                        \
      const ::bda::TensorView<::bda::cuda::detail::OtherHalf<T>::type, 3>&, cudaStream_t);         \
  template ::bda::Status bda::cuda::gather_columns<T>(                                             \
      const ::bda::TensorView<const T, 2>&, const std::int32_t*, const ::bda::TensorView<T, 2>&,   \
      cudaStream_t);                                                                               \
  template ::bda::Status bda::cuda::set_lengths<T>(const std::int64_t*, std::int64_t,              \
                                                   std::int32_t*, cudaStream_t)

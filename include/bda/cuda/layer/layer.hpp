#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"

/// What stands between the products of an attention layer, for plain C++: norms, rotations, copies.
/// Bodies and kernels are in layer.cuh; BDA_INSTANTIATE_CUDA_LAYER(T) for __half, __nv_bfloat16.
/// Views are of device memory with unit stride in the last dimension. rotate, copy_rows and
/// cast_rows move 16 bytes at a time: widths and strides are multiples of 8 elements, pointers
/// aligned to 16 bytes. Nothing is checked but the widths and the launch. Arithmetic is in fp32.
namespace bda::inline v0::cuda {

/// out = x / sqrt(mean(x^2) + epsilon) * weight over the last dimension; `out` may be `x`.
template <class T>
[[nodiscard]] Status rms_norm(const TensorView<const T, 4>& x, const T* weight, float epsilon,
                              const TensorView<T, 4>& out, cudaStream_t stream);

/// Rotates [batch, tokens, heads, 2 frequencies] in place: token i by first_position + i times each
/// of `frequencies` (device, radians), pairs (2 i, 2 i + 1) where `interleaved`, else (i, i +
/// half); cosine and sine are multiplied by `magnitude`.
template <class T>
[[nodiscard]] Status rotate(const TensorView<T, 4>& x, const double* frequencies, bool interleaved,
                            double magnitude, std::int64_t first_position, cudaStream_t stream);

/// to = from, both [batch, tokens, heads, width]; a head stride of 0 in `from` repeats it.
template <class T>
[[nodiscard]] Status copy_rows(const TensorView<const T, 4>& from, const TensorView<T, 4>& to,
                               cudaStream_t stream);

/// to = from, both [batch, tokens, width], each value rounded to nearest. From and To are the two
/// 16-bit types; instantiated with From.
template <class From, class To>
[[nodiscard]] Status cast_rows(const TensorView<const From, 3>& from, const TensorView<To, 3>& to,
                               cudaStream_t stream);

/// out[t, i] = x[t, columns[i]].
template <class T>
[[nodiscard]] Status gather_columns(const TensorView<const T, 2>& x, const std::int32_t* columns,
                                    const TensorView<T, 2>& out, cudaStream_t stream);

/// to [count] (device) = lengths [count], read from the host during the call: as it goes along with
/// the launches, a captured graph keeps the values of its capture. (T is the layer's type: it has
/// no part here, but that the function is instantiated with the others.)
template <class T>
[[nodiscard]] Status set_lengths(const std::int64_t* lengths, std::int64_t count, std::int32_t* to,
                                 cudaStream_t stream);

}  // namespace bda::inline v0::cuda

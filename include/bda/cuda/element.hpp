#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bda/core/dtype.hpp"

namespace bda::inline v0::cuda {

/// The element types the kernels take, and their DType.
template <class T>
struct Element;

template <>
struct Element<float> {
  static constexpr DType dtype = DType::kF32;
};
template <>
struct Element<__half> {
  static constexpr DType dtype = DType::kF16;
};
template <>
struct Element<__nv_bfloat16> {
  static constexpr DType dtype = DType::kBF16;
};

}  // namespace bda::inline v0::cuda

#pragma once

#include <Eigen/Core>

#include "bda/core/dtype.hpp"

namespace bda::inline v0 {

// Eigen's own products of these types accumulate in them; the library widens to float first.

template <>
struct StorageTraits<Eigen::half> {
  using Compute = float;
  static constexpr DType dtype = DType::kF16;
  static constexpr double unit_roundoff = 0x1p-11;
  static constexpr double largest = 65504.0;
};

template <>
struct StorageTraits<Eigen::bfloat16> {
  using Compute = float;
  static constexpr DType dtype = DType::kBF16;
  static constexpr double unit_roundoff = 0x1p-8;
  static constexpr double largest = 0x1.fep+127;
};

}  // namespace bda::inline v0

#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

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

namespace linalg {

/// to[i] = from[i], rounded to nearest even where C is the narrower type.
///
/// Weights pass through here in every product. Eigen 3.4 widens 16-bit types one value at a time;
/// on their bits compilers vectorise it, and for fp16 x86 has an instruction.
template <class C, class S>
void convert(const S* from, C* to, std::int64_t count) {
  using Eigen::numext::bit_cast;
  if constexpr (std::is_same_v<S, C>) {
    std::copy_n(from, count, to);
  } else if constexpr (std::is_same_v<S, Eigen::bfloat16> && std::is_floating_point_v<C>) {
    for (std::int64_t i = 0; i < count; ++i)
      to[i] = static_cast<C>(float_from_bf16_bits(bit_cast<std::uint16_t>(from[i])));
  } else if constexpr (std::is_same_v<S, Eigen::half> && std::is_floating_point_v<C>) {
    std::int64_t i = 0;
#ifdef EIGEN_HAS_FP16_C  // then Eigen has included the intrinsics
    if constexpr (std::is_same_v<C, float>)
      for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(
            to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < count; ++i)
      to[i] = static_cast<C>(float_from_fp16_bits(bit_cast<std::uint16_t>(from[i])));
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<C>(from[i]);
  }
}

/// A finite value to the nearest T, ties to even, where its range allows.
template <class T, class W>
T nearest(W value) {
  if constexpr (std::is_same_v<T, Eigen::bfloat16>) {
    // Eigen's conversion looks for NaN first, which keeps loops from being vectorised.
    const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
    return Eigen::numext::bit_cast<Eigen::bfloat16>(
        static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16));
  } else if constexpr (sizeof(T) == 2) {
    return static_cast<T>(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

}  // namespace linalg

}  // namespace bda::inline v0

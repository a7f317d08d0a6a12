#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

#include "bda/core/error.hpp"

namespace bda::inline v0 {

/// The types weights are stored in.
enum class DType { kF64, kF32, kF16, kBF16 };

[[nodiscard]] constexpr int size_of(DType t) {
  return t == DType::kF64 ? 8 : t == DType::kF32 ? 4 : 2;
}

[[nodiscard]] constexpr std::string_view name_of(DType t) {
  constexpr std::array<std::string_view, 4> names{"fp64", "fp32", "fp16", "bf16"};
  return names[static_cast<std::size_t>(t)];
}

/// The inverse of `name_of`; throws on any other text.
[[nodiscard]] inline DType parse_dtype(std::string_view text) {
  for (DType t : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16})
    if (text == name_of(t)) return t;
  throw Error("dtype", "fp64, fp32, fp16 or bf16", std::string(text));
}

/// What a stored type is, for any scalar the library stores weights in. Specialised for float and
/// double here and for Eigen's 16-bit types in linalg/scalar.hpp.
template <class T>
struct StorageTraits;

template <>
struct StorageTraits<double> {
  using Compute = double;  // what products are accumulated in
  static constexpr DType dtype = DType::kF64;
  static constexpr double unit_roundoff = 0x1p-53;
  static constexpr double largest = 0x1.fffffffffffffp+1023;
};

template <>
struct StorageTraits<float> {
  using Compute = float;
  static constexpr DType dtype = DType::kF32;
  static constexpr double unit_roundoff = 0x1p-24;
  static constexpr double largest = 0x1.fffffep+127;
};

template <class T>
using compute_t = typename StorageTraits<T>::Compute;

template <class T>
concept Storage = requires {
  StorageTraits<T>::dtype;
};

/// IEEE 754 binary16 to float; exact. Without branches, so that loops over it are vectorised.
[[nodiscard]] constexpr float float_from_fp16_bits(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = bits & 0x7c00u;
  // the exponent's bias is 127 in place of 15; that of Inf and NaN goes to the top
  const std::uint32_t shift = exponent == 0x7c00u ? 224u << 23 : 112u << 23;
  const std::uint32_t normal = (static_cast<std::uint32_t>(bits & 0x7fffu) << 13) + shift;
  const std::uint32_t small =  // zero and subnormals
      std::bit_cast<std::uint32_t>(static_cast<float>(bits & 0x3ff) * 0x1p-24f);
  const std::uint32_t is_small = 0u - static_cast<std::uint32_t>(exponent == 0);
  return std::bit_cast<float>(sign | (small & is_small) | (normal & ~is_small));
}

/// fp8 e4m3 (no infinities, NaN where all bits but the sign are set) to float; exact.
[[nodiscard]] constexpr float float_from_e4m3_bits(std::uint8_t bits) {
  const std::uint32_t magnitude = bits & 0x7fu, exponent = magnitude >> 3;
  if (magnitude == 0x7f) return std::bit_cast<float>(0x7fc00000u);
  const float value =
      exponent == 0  // zero and subnormals, in units of 2^-9
          ? static_cast<float>(magnitude) * 0x1p-9f
          : std::bit_cast<float>(((exponent + 120u) << 23) | ((magnitude & 7u) << 20));
  return (bits & 0x80u) != 0 ? -value : value;
}

/// bfloat16 to float; exact.
[[nodiscard]] constexpr float float_from_bf16_bits(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace bda::inline v0

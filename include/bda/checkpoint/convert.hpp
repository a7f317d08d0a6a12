#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "bda/checkpoint/safetensors.hpp"
#include "bda/core/dtype.hpp"

/// From a tensor's stored values to the library's types. Where both are the same type the bits are
/// copied; widening is exact; narrowing rounds once, to nearest even.
namespace bda::inline v0::checkpoint {

/// The format's name of a storage type.
[[nodiscard]] constexpr std::string_view element_name(DType t) {
  return t == DType::kF64 ? "F64" : t == DType::kF32 ? "F32" : t == DType::kF16 ? "F16" : "BF16";
}

namespace detail {

/// A float that rounds on to any type of at most 22 bits' precision as `x` itself does: the value
/// toward zero with its last bit set where `x` lies beyond it ("round to odd"). Rounding to
/// nearest twice, by way of float, could differ in the last bit.
[[nodiscard]] inline float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  if (static_cast<double>(nearest) == x || std::isnan(x)) return nearest;
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(x)) --bits;  // one step toward zero
  return std::bit_cast<float>(bits | 1u);
}

/// To T, rounding once.
template <Storage T, class From>
[[nodiscard]] T narrow(From x) {
  if constexpr (std::is_same_v<From, double> && sizeof(T) == 2)
    return static_cast<T>(round_to_odd(x));
  else
    return static_cast<T>(x);
}

/// Calls `visit(values)` with an index -> value function for the stored floating-point type.
template <class Visitor>
void visit_values(const Tensor& tensor, const Visitor& visit) {
  const std::byte* bytes = tensor.bytes.data();
  const auto load = [bytes]<class Raw>(Raw, std::int64_t i) {
    Raw raw;
    std::memcpy(&raw, bytes + static_cast<std::size_t>(i) * sizeof(Raw), sizeof(Raw));
    return raw;
  };
  if (tensor.type.name == "F64")
    visit([&](std::int64_t i) { return load(double{}, i); });
  else if (tensor.type.name == "F32")
    visit([&](std::int64_t i) { return load(float{}, i); });
  else if (tensor.type.name == "F16")
    visit([&](std::int64_t i) { return float_from_fp16_bits(load(std::uint16_t{}, i)); });
  else if (tensor.type.name == "BF16")
    visit([&](std::int64_t i) { return float_from_bf16_bits(load(std::uint16_t{}, i)); });
  else
    throw Error(tensor.label() + ".dtype", "F64, F32, F16 or BF16", std::string(tensor.type.name));
}

}  // namespace detail

/// All values of a floating-point tensor, in stored order.
///
/// Infinities and NaN pass; a finite value that would become infinite in T is refused by tensor and
/// index, and so is a tensor of another kind.
template <Storage T>
[[nodiscard]] std::vector<T> read_values(const Tensor& tensor) {
  const std::int64_t count = tensor.size();
  std::vector<T> values(static_cast<std::size_t>(count));
  if (tensor.type.name == element_name(StorageTraits<T>::dtype)) {
    if (count > 0)
      std::memcpy(static_cast<void*>(values.data()), tensor.bytes.data(), tensor.bytes.size());
    return values;
  }
  detail::visit_values(tensor, [&](const auto& value_at) {
    for (std::int64_t i = 0; i < count; ++i) {
      const auto stored = value_at(i);
      const T value = detail::narrow<T>(stored);
      if (std::isinf(static_cast<double>(value)) && !std::isinf(stored))
        throw Error(tensor.label() + "[" + std::to_string(i) + "]",
                    "a magnitude that " + std::string(name_of(StorageTraits<T>::dtype)) +
                        " can hold (at most " + quote(Json(StorageTraits<T>::largest)) + ")",
                    quote(Json(stored)));
      values[static_cast<std::size_t>(i)] = value;
    }
  });
  return values;
}

/// All values of an I32 or I64 tensor, in stored order; any other type is refused.
[[nodiscard]] inline std::vector<std::int64_t> read_integers(const Tensor& tensor) {
  const auto read_as = [&]<class Raw>(Raw) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(tensor.size()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      Raw raw;
      std::memcpy(&raw, tensor.bytes.data() + i * sizeof(Raw), sizeof(Raw));
      values[i] = raw;
    }
    return values;
  };
  if (tensor.type.name == "I32") return read_as(std::int32_t{});
  if (tensor.type.name == "I64") return read_as(std::int64_t{});
  throw Error(tensor.label() + ".dtype", "I32 or I64", std::string(tensor.type.name));
}

}  // namespace bda::inline v0::checkpoint

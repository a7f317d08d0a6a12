#pragma once

#include <algorithm>
#include <array>
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

namespace detail {

/// `stored`, the value at `i`, in T. Throws `Error` for a finite value that would become infinite.
template <Storage T, class From>
[[nodiscard]] T narrow_at(const Tensor& tensor, std::int64_t i, From stored) {
  const T value = narrow<T>(stored);
  if (std::isinf(static_cast<double>(value)) && !std::isinf(stored))
    throw Error(tensor.label() + "[" + std::to_string(i) + "]",
                "a magnitude that " + std::string(name_of(StorageTraits<T>::dtype)) +
                    " can hold (at most " + quote(Json(StorageTraits<T>::largest)) + ")",
                quote(Json(stored)));
  return value;
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
    for (std::int64_t i = 0; i < count; ++i)
      values[static_cast<std::size_t>(i)] = detail::narrow_at<T>(tensor, i, value_at(i));
  });
  return values;
}

/// The extents of the blocks of a weight that share a scale.
struct ScaleBlocks {
  std::int64_t rows = 128, cols = 128;
};

/// The values of an F8_E4M3 matrix [rows, cols] with an F32 scale for each block (DeepSeek-V3's
/// published layout), scales [ceil(rows / blocks.rows), ceil(cols / blocks.cols)]: stored value
/// times scale, rounded to T once. Throws `Error` for other types and shapes, for a scale that is
/// negative or not finite, and for a value that does not fit T.
template <Storage T>
[[nodiscard]] std::vector<T> read_block_scaled(const Tensor& tensor, const Tensor& scales,
                                               const ScaleBlocks& blocks) {
  if (tensor.type.name != "F8_E4M3")
    throw Error(tensor.label() + ".dtype", "F8_E4M3", std::string(tensor.type.name));
  if (tensor.shape.size() != 2)
    throw Error(tensor.label() + ".shape", "rows and columns", shape_text(tensor.shape));
  const std::int64_t rows = tensor.shape[0], cols = tensor.shape[1];
  const std::int64_t row_blocks = (rows + blocks.rows - 1) / blocks.rows;
  const std::int64_t col_blocks = (cols + blocks.cols - 1) / blocks.cols;
  if (scales.type.name != "F32")
    throw Error(scales.label() + ".dtype", "F32", std::string(scales.type.name));
  if (scales.shape != std::vector{row_blocks, col_blocks})
    throw Error(scales.label() + ".shape",
                shape_text({row_blocks, col_blocks}) + " (a scale for each block)",
                shape_text(scales.shape));
  const std::vector<double> scale = read_values<double>(scales);
  for (std::size_t i = 0; i < scale.size(); ++i)
    if (!(scale[i] >= 0) || std::isinf(scale[i]))
      throw Error(scales.label() + "[" + std::to_string(i) + "]", "a finite scale of at least 0",
                  quote(Json(scale[i])));
  std::array<double, 256> value_of;
  for (std::size_t bits = 0; bits < value_of.size(); ++bits)
    value_of[bits] = static_cast<double>(float_from_e4m3_bits(static_cast<std::uint8_t>(bits)));
  std::vector<T> values(static_cast<std::size_t>(tensor.size()));
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t block = 0; block < col_blocks; ++block) {
      const double factor = scale[static_cast<std::size_t>(i / blocks.rows * col_blocks + block)];
      const std::int64_t end = i * cols + std::min(cols, (block + 1) * blocks.cols);
      for (std::int64_t at = i * cols + block * blocks.cols; at < end; ++at) {
        const auto stored = static_cast<std::size_t>(tensor.bytes[static_cast<std::size_t>(at)]);
        // Exact in double: 4 bits times 24.
        values[static_cast<std::size_t>(at)] =
            detail::narrow_at<T>(tensor, at, value_of[stored] * factor);
      }
    }
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

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bda/core/checks.hpp"
#include "bda/core/dtype.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda/host_device.hpp"

/// The coefficients C in the order the kernels read them: arranged once, offline, because C is a
/// weight.
namespace bda::inline v0::cuda {

/// How packed coefficients lie in memory. Saved next to them in a checkpoint; a reader refuses a
/// `version` it does not know.
///
/// 16-bit types: tiles of 64 output columns x 64 input channels, [column block][channel block], so
/// that one tile is one contiguous 8 KiB copy. In a tile, row j is output column j and the 16-byte
/// piece p of it (channels 8 p to 8 p + 7) lies at piece p ^ (j % 8): the 128-byte swizzle that
/// wgmma and ldmatrix read without bank conflicts. Both dimensions are padded with zeros to 64.
/// fp32: row-major [rest, heads * width], as it is.
struct PackedCoefficients {
  static constexpr std::int32_t kVersion = 1;
  static constexpr std::int64_t kBlock = 64;  // columns and channels of a tile

  std::int32_t version = kVersion;
  DType dtype = DType::kF16;
  std::int64_t rest = 0;   // kv_dim - width, the rows of C
  std::int64_t heads = 0;  // n
  std::int64_t width = 0;  // r

  [[nodiscard]] BDA_HOST_DEVICE constexpr std::int64_t columns() const { return heads * width; }
  [[nodiscard]] BDA_HOST_DEVICE constexpr std::int64_t column_blocks() const {
    return (columns() + kBlock - 1) / kBlock;
  }
  [[nodiscard]] BDA_HOST_DEVICE constexpr std::int64_t channel_blocks() const {
    return (rest + kBlock - 1) / kBlock;
  }
  /// Elements of the packed form.
  [[nodiscard]] constexpr std::int64_t size() const {
    if (dtype == DType::kF32) return rest * columns();
    return column_blocks() * channel_blocks() * kBlock * kBlock;
  }
  [[nodiscard]] constexpr std::int64_t bytes() const { return size() * size_of(dtype); }

  /// Where C[channel, column] lies in the packed form.
  [[nodiscard]] BDA_HOST_DEVICE constexpr std::int64_t offset(std::int64_t channel,
                                                              std::int64_t column) const {
    if (dtype == DType::kF32) return channel * columns() + column;
    const std::int64_t tile = (column / kBlock) * channel_blocks() + channel / kBlock;
    const std::int64_t row = column % kBlock, within = channel % kBlock;
    const std::int64_t piece = (within / 8) ^ (row % 8);
    return (tile * kBlock + row) * kBlock + piece * 8 + within % 8;
  }

  friend constexpr bool operator==(const PackedCoefficients&, const PackedCoefficients&) = default;
};

/// Packs on the host. `coefficients` is [rest, heads * width] in any strides, T any type of
/// `layout.dtype`'s size whose bits are copied. Throws on a shape or size that does not fit.
template <class T>
[[nodiscard]] std::vector<T> pack_coefficients(MatrixView<const T> coefficients,
                                               const PackedCoefficients& layout) {
  check::equal("packed coefficients version", layout.version, PackedCoefficients::kVersion);
  check::equal("sizeof(coefficient)", sizeof(T), size_of(layout.dtype), "size of the dtype");
  check::equal("coefficients.extent(0)", coefficients.extent(0), layout.rest, "rest");
  check::equal("coefficients.extent(1)", coefficients.extent(1), layout.columns(), "heads * width");
  std::vector<T> packed(static_cast<std::size_t>(layout.size()));
  std::memset(static_cast<void*>(packed.data()), 0, packed.size() * sizeof(T));
  for (std::int64_t k = 0; k < layout.rest; ++k)
    for (std::int64_t j = 0; j < layout.columns(); ++j)
      packed[static_cast<std::size_t>(layout.offset(k, j))] = coefficients(k, j);
  return packed;
}

}  // namespace bda::inline v0::cuda

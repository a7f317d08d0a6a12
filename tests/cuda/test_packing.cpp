#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "bda/core/error.hpp"
#include "bda/cuda/projection/packing.hpp"

using bda::DType;
using bda::MatrixView;
using bda::cuda::pack_coefficients;
using bda::cuda::PackedCoefficients;

TEST_CASE("the packed layout is a bijection into padded tiles", "[cuda][packing]") {
  for (std::int64_t rest : {8, 64, 72, 384})
    for (std::int64_t width : {8, 80, 128})
      for (std::int64_t heads : {1, 3}) {
        const PackedCoefficients layout{PackedCoefficients::kVersion, DType::kBF16, rest, heads,
                                        width};
        std::vector<bool> taken(static_cast<std::size_t>(layout.size()), false);
        for (std::int64_t k = 0; k < rest; ++k)
          for (std::int64_t j = 0; j < layout.columns(); ++j) {
            const std::int64_t at = layout.offset(k, j);
            REQUIRE(at >= 0);
            REQUIRE(at < layout.size());
            REQUIRE_FALSE(taken[static_cast<std::size_t>(at)]);
            taken[static_cast<std::size_t>(at)] = true;
          }
        CHECK(layout.bytes() == 2 * layout.size());
      }
}

TEST_CASE("16-byte pieces stay whole and rows are swizzled", "[cuda][packing]") {
  const PackedCoefficients layout{PackedCoefficients::kVersion, DType::kF16, 128, 2, 64};
  for (std::int64_t j = 0; j < 128; ++j)
    for (std::int64_t k = 0; k < 128; k += 8) {
      for (std::int64_t i = 1; i < 8; ++i)
        REQUIRE(layout.offset(k + i, j) == layout.offset(k, j) + i);
      // Tile (column block, channel block), row j % 64, piece XOR row.
      const std::int64_t tile = (j / 64) * 2 + k / 64, piece = ((k % 64) / 8) ^ (j % 8);
      REQUIRE(layout.offset(k, j) == tile * 4096 + (j % 64) * 64 + piece * 8);
    }
}

TEST_CASE("packing copies every value, pads with zeros, takes strides", "[cuda][packing]") {
  const std::int64_t rest = 72, width = 24, heads = 3, columns = width * heads;
  const PackedCoefficients layout{PackedCoefficients::kVersion, DType::kF16, rest, heads, width};
  std::vector<std::uint16_t> transposed(static_cast<std::size_t>(rest * columns));
  for (std::size_t i = 0; i < transposed.size(); ++i)
    transposed[i] = static_cast<std::uint16_t>(i + 1);
  const MatrixView<const std::uint16_t> view(transposed.data(), {rest, columns}, {1, rest});
  const std::vector<std::uint16_t> packed = pack_coefficients<std::uint16_t>(view, layout);
  std::size_t nonzero = 0;
  for (std::uint16_t v : packed) nonzero += v != 0;
  CHECK(nonzero == transposed.size());
  for (std::int64_t k = 0; k < rest; ++k)
    for (std::int64_t j = 0; j < columns; ++j)
      REQUIRE(packed[static_cast<std::size_t>(layout.offset(k, j))] == view(k, j));
}

TEST_CASE("fp32 stays row-major", "[cuda][packing]") {
  const PackedCoefficients layout{PackedCoefficients::kVersion, DType::kF32, 5, 2, 3};
  std::vector<float> c(30);
  for (std::size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i);
  CHECK(pack_coefficients<float>(MatrixView<const float>(c.data(), {5, 6}), layout) == c);
}

TEST_CASE("packing refuses what does not fit, by name", "[cuda][packing]") {
  const PackedCoefficients layout{PackedCoefficients::kVersion, DType::kF16, 64, 1, 64};
  const std::vector<std::uint16_t> c(64 * 64);
  const auto error_of = [&](std::int64_t rows, std::int64_t columns, PackedCoefficients l) {
    try {
      (void)pack_coefficients<std::uint16_t>(
          MatrixView<const std::uint16_t>(c.data(), {rows, columns}), l);
    } catch (const bda::Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(error_of(63, 64, layout).find("coefficients.extent(0)") == 0);
  CHECK(error_of(64, 63, layout).find("coefficients.extent(1)") == 0);
  PackedCoefficients other = layout;
  other.version = 2;
  CHECK(error_of(64, 64, other).find("version") != std::string::npos);
  other = layout;
  other.dtype = DType::kF32;
  CHECK(error_of(64, 64, other).find("sizeof") == 0);
}

#include <Eigen/Core>
#include <bda/core/dtype.hpp>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "support/error_of.hpp"

namespace {

// Bits, not values: that tells -0 from 0. A NaN may keep any payload.
bool same(float ours, float theirs) {
  if (std::isnan(theirs)) return std::isnan(ours);
  return std::bit_cast<std::uint32_t>(ours) == std::bit_cast<std::uint32_t>(theirs);
}

TEST_CASE("Every fp16 pattern converts as Eigen::half does") {
  int differing = 0, nans = 0;
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float ours = bda::float_from_fp16_bits(bits);
    const auto theirs = static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(bits));
    differing += !same(ours, theirs);
    nans += std::isnan(ours);
  }
  CHECK(differing == 0);
  CHECK(nans == 2 * 1023);  // exponent 31, mantissa not 0
}

TEST_CASE("Every bf16 pattern converts as Eigen::bfloat16 does") {
  int differing = 0, nans = 0;
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float ours = bda::float_from_bf16_bits(bits);
    const auto theirs = static_cast<float>(Eigen::numext::bit_cast<Eigen::bfloat16>(bits));
    differing += !same(ours, theirs);
    nans += std::isnan(ours);
  }
  CHECK(differing == 0);
  CHECK(nans == 2 * 127);
}

TEST_CASE("Every e4m3 pattern is its sign, exponent and mantissa") {
  int differing = 0;
  for (std::uint32_t i = 0; i < 0x100; ++i) {
    const int exponent = static_cast<int>(i >> 3 & 15), mantissa = static_cast<int>(i & 7);
    // Bias 7; without a leading one below the smallest normal; NaN in the place of the largest.
    double expected =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    if (exponent == 15 && mantissa == 7) expected = std::nan("");
    if ((i & 0x80) != 0) expected = -expected;
    differing += !same(bda::float_from_e4m3_bits(static_cast<std::uint8_t>(i)),
                       static_cast<float>(expected));
  }
  CHECK(differing == 0);
  STATIC_CHECK(bda::float_from_e4m3_bits(0x7e) == 448.0f);  // the largest
}

TEST_CASE("The 16-bit conversions are right at compile time at the landmarks") {
  STATIC_CHECK(bda::float_from_fp16_bits(0x3c00) == 1.0f);
  STATIC_CHECK(bda::float_from_fp16_bits(0x7bff) == 65504.0f);
  STATIC_CHECK(bda::float_from_fp16_bits(0x8001) == -0x1p-24f);  // smallest subnormal
  STATIC_CHECK(bda::float_from_fp16_bits(0x0400) == 0x1p-14f);   // smallest normal
  STATIC_CHECK(bda::float_from_bf16_bits(0xbf80) == -1.0f);
}

TEST_CASE("A dtype's name and size") {
  STATIC_CHECK(bda::size_of(bda::DType::kF64) == 8);
  STATIC_CHECK(bda::size_of(bda::DType::kF32) == 4);
  STATIC_CHECK(bda::size_of(bda::DType::kF16) == 2);
  STATIC_CHECK(bda::size_of(bda::DType::kBF16) == 2);
  CHECK(bda::name_of(bda::DType::kF64) == "fp64");
  CHECK(bda::name_of(bda::DType::kBF16) == "bf16");
  for (auto t : {bda::DType::kF64, bda::DType::kF32, bda::DType::kF16, bda::DType::kBF16})
    CHECK(bda::parse_dtype(bda::name_of(t)) == t);
}

TEST_CASE("An unknown dtype is refused by its text") {
  const bda::Error error = bda_test::error_of([] { return bda::parse_dtype("int8"); });
  CHECK(std::string(error.what()) == "dtype: expected fp64, fp32, fp16 or bf16, got int8");
  CHECK(bda_test::error_of([] { return bda::parse_dtype("fp3"); }).given() == "fp3");
}

}  // namespace

#include <bda/checkpoint/convert.hpp>
#include <bda/linalg/scalar.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

using bda::checkpoint::find_element_type;
using bda::checkpoint::read_block_scaled;
using bda::checkpoint::read_integers;
using bda::checkpoint::read_values;
using bda::checkpoint::Tensor;
using bda_test::error_of;
using Catch::Matchers::ContainsSubstring;

/// A tensor that refers to `values`.
template <class Raw>
Tensor tensor_of(const std::vector<Raw>& values, const char* type) {
  return {"w",
          *find_element_type(type),
          {static_cast<std::int64_t>(values.size())},
          std::as_bytes(std::span(values)),
          "f"};
}

std::vector<std::uint16_t> all_bit_patterns() {
  std::vector<std::uint16_t> bits(1 << 16);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  return bits;
}

TEMPLATE_TEST_CASE("Every 16-bit value passes unchanged into its own type and exactly into wider",
                   "", Eigen::half, Eigen::bfloat16) {
  const std::vector<std::uint16_t> bits = all_bit_patterns();
  const Tensor tensor = tensor_of(bits, std::is_same_v<TestType, Eigen::half> ? "F16" : "BF16");
  const auto same = read_values<TestType>(tensor);
  CHECK(std::memcmp(same.data(), bits.data(), tensor.bytes.size()) == 0);
  const auto wide = read_values<float>(tensor);
  const auto widest = read_values<double>(tensor);
  int wrong = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const auto expected = static_cast<float>(same[i]);
    if (std::isnan(expected))
      wrong += !std::isnan(wide[i]) || !std::isnan(widest[i]);
    else
      wrong += wide[i] != expected || std::signbit(wide[i]) != std::signbit(expected) ||
               widest[i] != static_cast<double>(expected);
  }
  CHECK(wrong == 0);
}

/// The representable value nearest to x, by trying the neighbours of a first guess; ties to even.
/// Independent of any conversion under test but T's own widening.
template <class T>
T nearest_of(double x) {
  const auto guess = std::bit_cast<std::uint16_t>(static_cast<T>(static_cast<float>(x)));
  T best{};
  double best_error = std::numeric_limits<double>::infinity();
  for (int step = -1; step <= 1; ++step) {
    const auto bits = static_cast<std::uint16_t>(guess + step);
    const T candidate = std::bit_cast<T>(bits);
    const double error = std::abs(static_cast<double>(static_cast<float>(candidate)) - x);
    if (error < best_error || (error == best_error && bits % 2 == 0)) {
      best = candidate;
      best_error = error;
    }
  }
  return best;
}

TEMPLATE_TEST_CASE("F64 narrows to 16 bits in one rounding, to nearest even", "", Eigen::half,
                   Eigen::bfloat16) {
  std::mt19937_64 random(5);
  std::vector<double> values;
  for (int i = 0; i < 2000; ++i) {
    // A point halfway between two neighbours, and points beside it too close for float to tell:
    // there, rounding by way of float goes to even where the value itself is on one side.
    const auto bits = static_cast<std::uint16_t>(0x3000 + random() % 0x1000);
    const double low = static_cast<float>(std::bit_cast<TestType>(bits));
    const double high =
        static_cast<float>(std::bit_cast<TestType>(static_cast<std::uint16_t>(bits + 1)));
    const double middle = (low + high) / 2;
    for (double x : {middle, middle * (1 + 0x1p-40), middle * (1 - 0x1p-40)}) {
      values.push_back(x);
      values.push_back(-x);
    }
  }
  const auto narrow = read_values<TestType>(tensor_of(values, "F64"));
  int wrong = 0, wrong_by_float = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const TestType expected = nearest_of<TestType>(values[i]);
    wrong += std::bit_cast<std::uint16_t>(narrow[i]) != std::bit_cast<std::uint16_t>(expected);
    wrong_by_float +=
        std::bit_cast<std::uint16_t>(static_cast<TestType>(static_cast<float>(values[i]))) !=
        std::bit_cast<std::uint16_t>(expected);
  }
  CHECK(wrong == 0);
  CHECK(wrong_by_float > 0);  // else the cases above would not tell one from the other
}

TEST_CASE("Small magnitudes round to subnormals and zero, and keep their sign") {
  const double tiny = 0x1p-24;  // half's smallest
  const std::vector<double> values{tiny, 1.5 * tiny, tiny / 2, tiny * 0.5000001, -1e-300, -0.0};
  const auto half = read_values<Eigen::half>(tensor_of(values, "F64"));
  const std::vector<std::uint16_t> expected{1, 2, 0, 1, 0x8000, 0x8000};
  for (std::size_t i = 0; i < values.size(); ++i)
    CHECK(std::bit_cast<std::uint16_t>(half[i]) == expected[i]);
}

TEST_CASE("A finite value that would become infinite is refused by tensor and index") {
  const std::vector<float> values{1, 65519.9f, -65520, 3};
  CHECK_THAT(error_of([&] { (void)read_values<Eigen::half>(tensor_of(values, "F32")); }),
             ContainsSubstring("f: w[2]") && ContainsSubstring("fp16 can hold (at most 65504.0)") &&
                 ContainsSubstring("got -65520.0"));
  CHECK_THAT(
      error_of([&] { (void)read_values<float>(tensor_of(std::vector<double>{1e39}, "F64")); }),
      ContainsSubstring("f: w[0]") && ContainsSubstring("fp32") && ContainsSubstring("got 1e+39"));
  // The largest float lies past the largest bfloat16 and rounds away from it.
  const std::vector<float> largest{std::numeric_limits<float>::max()};
  CHECK_THAT(error_of([&] { (void)read_values<Eigen::bfloat16>(tensor_of(largest, "F32")); }),
             ContainsSubstring("f: w[0]") && ContainsSubstring("bf16"));
  const std::vector<float> infinite{std::numeric_limits<float>::infinity()};
  CHECK(
      std::isinf(static_cast<float>(read_values<Eigen::half>(tensor_of(infinite, "F32")).front())));
}

/// An F8_E4M3 matrix that refers to `values`.
Tensor fp8_matrix(const std::vector<std::uint8_t>& values, std::int64_t rows, std::int64_t cols) {
  Tensor tensor = tensor_of(values, "F8_E4M3");
  tensor.shape = {rows, cols};
  return tensor;
}

TEST_CASE("fp8 values are multiplied by the scale of their block, rounded once") {
  constexpr std::int64_t rows = 5, cols = 7;  // blocks of 2 x 3: the last ones are parts
  std::mt19937_64 random(9);
  std::vector<std::uint8_t> stored(rows * cols);
  for (std::uint8_t& v : stored)
    v = static_cast<std::uint8_t>(random() % 0x7f + 0x80 * (random() % 2));
  std::vector<float> scale(3 * 3);
  for (float& s : scale) s = std::ldexp(static_cast<float>(random() % 0xffffff + 1), -30);
  Tensor scales = tensor_of(scale, "F32");
  scales.shape = {3, 3};
  const Tensor tensor = fp8_matrix(stored, rows, cols);
  const auto wide = read_block_scaled<double>(tensor, scales, {2, 3});
  const auto narrow = read_block_scaled<Eigen::bfloat16>(tensor, scales, {2, 3});
  int wrong = 0;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j) {
      const auto at = static_cast<std::size_t>(i * cols + j);
      const double expected =
          static_cast<double>(bda::float_from_e4m3_bits(stored[at])) *
          static_cast<double>(scale[static_cast<std::size_t>(i / 2 * 3 + j / 3)]);
      wrong += wide[at] != expected;
      wrong += std::bit_cast<std::uint16_t>(narrow[at]) !=
               std::bit_cast<std::uint16_t>(nearest_of<Eigen::bfloat16>(expected));
    }
  CHECK(wrong == 0);
}

TEST_CASE("Scales that are missing, misshapen or no scales are refused") {
  const std::vector<std::uint8_t> stored(12, 0x7e);
  const auto refusal = [&](std::vector<float> scale, std::vector<std::int64_t> shape,
                           const char* type = "F32") {
    Tensor scales = tensor_of(scale, type);
    scales.shape = std::move(shape);
    return error_of([&] {
      (void)read_block_scaled<Eigen::half>(fp8_matrix(stored, 3, 4), scales, {2, 2});
    });
  };
  CHECK(refusal({1, 1, 1, 1}, {2, 2}).empty());
  CHECK_THAT(refusal({1, 1, 1, 1}, {4}),
             ContainsSubstring("f: w.shape: expected [2, 2] (a scale for each block), got [4]"));
  CHECK_THAT(refusal({1, 1}, {1, 2}), ContainsSubstring("got [1, 2]"));
  CHECK_THAT(refusal({1, 1, 1, 1}, {2, 2}, "I32"),
             ContainsSubstring("f: w.dtype: expected F32, got I32"));
  CHECK_THAT(refusal({1, 1, -1, 1}, {2, 2}),
             ContainsSubstring("f: w[2]: expected a finite scale of at least 0, got -1.0"));
  CHECK_THAT(refusal({1, std::numeric_limits<float>::infinity(), 1, 1}, {2, 2}),
             ContainsSubstring("f: w[1]"));
  CHECK_THAT(refusal({1, 1, 1, std::numeric_limits<float>::quiet_NaN()}, {2, 2}),
             ContainsSubstring("f: w[3]"));
  // 448 * 200 is past the largest half: the first value of the second column of blocks.
  CHECK_THAT(refusal({1, 200, 1, 1}, {2, 2}),
             ContainsSubstring("f: w[2]: expected a magnitude that fp16 can hold"));
  Tensor flat = fp8_matrix(stored, 3, 4);
  flat.shape = {12};
  const std::vector<float> one{1};
  CHECK_THAT(error_of([&] {
               (void)read_block_scaled<float>(flat, tensor_of(one, "F32"), {2, 2});
             }),
             ContainsSubstring("f: w.shape: expected rows and columns, got [12]"));
  CHECK_THAT(error_of([&] {
               (void)read_block_scaled<float>(tensor_of(one, "F32"), tensor_of(one, "F32"), {2, 2});
             }),
             ContainsSubstring("f: w.dtype: expected F8_E4M3, got F32"));
}

TEST_CASE("Integers are read as integers and nothing else is") {
  const std::vector<std::int32_t> narrow{0, -1, std::numeric_limits<std::int32_t>::min()};
  const std::vector<std::int64_t> wide{7, std::numeric_limits<std::int64_t>::max()};
  CHECK(read_integers(tensor_of(narrow, "I32")) == std::vector<std::int64_t>{0, -1, -2147483648LL});
  CHECK(read_integers(tensor_of(wide, "I64")) == wide);
  const std::vector<float> values{1};
  CHECK_THAT(error_of([&] { (void)read_integers(tensor_of(values, "F32")); }),
             ContainsSubstring("f: w.dtype: expected I32 or I64, got F32"));
  CHECK_THAT(error_of([&] { (void)read_values<float>(tensor_of(narrow, "I32")); }),
             ContainsSubstring("f: w.dtype: expected F64, F32, F16 or BF16, got I32"));
}

}  // namespace

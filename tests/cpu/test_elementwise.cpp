#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <complex>
#include <vector>

#include "attention/random_layer.hpp"
#include "bda/cpu/elementwise.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

TEST_CASE("a rotation multiplies complex planes by magnitude e^(i position frequency)") {
  Random random(7);
  for (RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalfSplit}) {
    const RopeConfig rope{style, {1.0, 0.1, 0.01}, 1.5};
    std::vector<double> cos(4 * 3), sin(4 * 3);
    cpu::RotaryTable<double> table{cos.data(), sin.data(), 3};
    table.fill(rope, 1000, 4);
    for (std::int64_t t = 0; t < 4; ++t) {
      const auto before = random.vector<double>(6);
      auto row = before;
      table.rotate(row.data(), t, style);
      for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t re = style == RopeStyle::kInterleaved ? 2 * i : i;
        const std::size_t im = style == RopeStyle::kInterleaved ? 2 * i + 1 : i + 3;
        const auto turned =
            std::complex(before[re], before[im]) *
            std::polar(1.5, (1000.0 + static_cast<double>(t)) * rope.frequencies[i]);
        // three products and a sum of numbers of size |before| 1.5: 8 roundings cover both sides
        const double tolerance = 8 * 0x1p-53 * 1.5 * (std::abs(before[re]) + std::abs(before[im]));
        CHECK(std::abs(row[re] - turned.real()) <= tolerance);
        CHECK(std::abs(row[im] - turned.imag()) <= tolerance);
      }
    }
  }
}

TEST_CASE("a far position keeps its angle in float") {
  // 200000 radians in float is off by up to 2^-7: its cosine would be, too
  const RopeConfig rope{RopeStyle::kInterleaved, {1.0}, 1.0};
  float cos = 0, sin = 0;
  cpu::RotaryTable<float> table{&cos, &sin, 1};
  table.fill(rope, 200003, 1);
  CHECK(std::abs(cos - std::cos(200003.0)) <= 0x1p-24);
  CHECK(std::abs(sin - std::sin(200003.0)) <= 0x1p-24);
}

TEST_CASE("an RMS norm leaves rows of mean square one") {
  Random random(8);
  const std::vector<double> gain(17, 1.0);
  auto row = random.vector<double>(17, 3, 2);
  const auto before = row;
  cpu::rms_norm(row.data(), gain, 0);
  double squares = 0;
  for (double x : row) squares += x * x;
  CHECK(std::abs(squares / 17 - 1) <= 40 * 0x1p-53);  // about 2 * 17 roundings
  CHECK(std::abs(row[3] / row[5] - before[3] / before[5]) <=
        8 * 0x1p-53 * std::abs(before[3] / before[5]));

  std::vector<double> zeros(17, 0.0);
  cpu::rms_norm(zeros.data(), gain, 1e-6);
  CHECK(zeros == std::vector<double>(17, 0.0));
}

#include <bda/model/rope.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "support/error_of.hpp"

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

// theta^(-2i / width) by repeated multiplication with the ratio of neighbours, in long double.
std::vector<double> frequencies_by_ratio(std::int64_t width, double theta) {
  const long double ratio = expl(-2 * logl(theta) / static_cast<long double>(width));
  std::vector<double> f;
  for (long double value = 1; std::ssize(f) < width / 2; value *= ratio)
    f.push_back(static_cast<double>(value));
  return f;
}

// pow is right to 1 ulp, and the rounding of its exponent e costs |e ln(theta)| eps: together at
// most (1 + ln(theta)) eps relative, as |e| < 1.
double relative_bound(double theta) { return (1 + std::log(theta)) * kEps; }

TEST_CASE("Rotary frequencies fall from 1 by theta's power") {
  for (std::int64_t width : {2, 6, 32, 64, 130})
    for (double theta : {100.0, 1e4, 5e5}) {
      const std::vector<double> f = bda::rope_frequencies(width, theta);
      const std::vector<double> expected = frequencies_by_ratio(width, theta);
      REQUIRE(f.size() == expected.size());
      for (std::size_t i = 0; i < f.size(); ++i)
        REQUIRE(std::abs(f[i] - expected[i]) <= relative_bound(theta) * expected[i]);
    }
}

TEST_CASE("A rotary width must be even") {
  CHECK(std::string(bda_test::error_of([] { return bda::rope_frequencies(7, 1e4); }).what()) ==
        "rope_dim: expected a positive multiple of 2, got 7");
}

// DeepSeek-V2: 64 channels, base 1e4, window 4096 stretched by 40. 4096 / (2 pi f) rotations: the
// channel with 32 of them is 64 ln(4096 / (32 * 2 pi)) / (2 ln 1e4) = 10.47, that with 1 is 22.51.
// So channels up to 10 are kept, from 23 on interpolated, and between them blended by (i - 10)
// / 13.
TEST_CASE("YaRN keeps fast channels, stretches slow ones and blends between") {
  constexpr double theta = 1e4;
  const std::vector<double> plain = frequencies_by_ratio(64, theta);
  const std::vector<double> f =
      bda::yarn_frequencies(64, theta, {.factor = 40, .beta_fast = 32, .beta_slow = 1});
  REQUIRE(f.size() == 32);
  for (std::size_t i = 0; i < f.size(); ++i) {
    const double blend = i <= 10 ? 0.0 : i >= 23 ? 1.0 : (static_cast<double>(i) - 10) / 13;
    const double expected = plain[i] * (1 - blend) + plain[i] / 40 * blend;
    CAPTURE(i);
    // Three more roundings for the blend of two positive terms, here and there.
    CHECK(std::abs(f[i] - expected) <= (relative_bound(theta) + 6 * kEps) * expected);
  }
}

TEST_CASE("YaRN with factor 1 changes nothing but rounding") {
  const std::vector<double> plain = bda::rope_frequencies(32, 1e4);
  const std::vector<double> f = bda::yarn_frequencies(32, 1e4, {});
  for (std::size_t i = 0; i < f.size(); ++i)
    CHECK(std::abs(f[i] - plain[i]) <= 3 * kEps * plain[i]);
}

TEST_CASE("YaRN's ramp of no width is a step") {
  // Both boundaries fall on channel 0 where the window holds less than one rotation of any.
  const std::vector<double> plain = bda::rope_frequencies(8, 1e4);
  const std::vector<double> f = bda::yarn_frequencies(
      8, 1e4, {.factor = 4, .original_max_position_embeddings = 6, .beta_fast = 1, .beta_slow = 1});
  CHECK(f[0] == plain[0]);
  for (std::size_t i = 1; i < f.size(); ++i) CHECK(f[i] == plain[i] / 4);
}

TEST_CASE("YaRN's magnitude is 0.1 m ln(s) + 1") {
  CHECK(bda::yarn_magnitude(1, 1) == 1);
  CHECK(bda::yarn_magnitude(0.5, 1) == 1);
  CHECK(bda::yarn_magnitude(40, 0) == 1);
  // ln 40 = 3.688879454113936: 1 + 0.3688879454113936, two roundings
  CHECK(std::abs(bda::yarn_magnitude(40, 1) - 1.3688879454113936) <= 2 * kEps);
  CHECK(std::abs(bda::yarn_magnitude(40, 0.707) - 1.2608037774058552) <= 3 * kEps);
}

}  // namespace

#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "bda/cuda/pipeline/divisor.hpp"

TEST_CASE("a Divisor divides as / and % do", "[cuda][divisor]") {
  constexpr int kMost = std::numeric_limits<int>::max();
  std::uint32_t random = 1;
  const auto next = [&] {
    return static_cast<int>((random = random * 1664525u + 1013904223u) >> 1);
  };
  const auto check = [&](int d) {
    const bda::cuda::Divisor by(d);
    CHECK(by.value() == d);
    const auto wrong = [&](int n) { return by.quotient(n) != n / d || by.remainder(n) != n % d; };
    const int multiple = kMost / d * d;  // the places where a quotient changes
    for (int n : {0, 1, d - 1, d, multiple - 1, multiple, kMost - 1, kMost})
      if (wrong(n)) FAIL(n << " by " << d);
    for (int i = 0; i < 200; ++i)
      if (const int n = next(); wrong(n)) FAIL(n << " by " << d);
  };
  for (int d = 1; d <= 1000; ++d) check(d);
  for (int log2 = 10; log2 < 31; ++log2)
    for (int offset : {-1, 0, 1}) check((1 << log2) + offset);
  for (int i = 0; i < 1000; ++i) check(next() | 1);
  check(kMost);
}

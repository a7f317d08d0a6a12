#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/random_layer.hpp"
#include "bda/cpu/product.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

namespace {

struct Shape {
  std::int64_t batch, tokens, depth, heads, width;
  bool identity, bias, choose;
};

/// One product of random operands with gaps everywhere, against a loop in double.
///
/// Tolerance: an element is a sum of depth + 2 terms in any order, fused or not, so its error is at
/// most (depth + 2) u times the sum of their absolute values (Higham, section 3.1); 1.01 covers the
/// higher orders.
template <class S>
void check_product(Random& random, const Shape& s, int threads) {
  using C = compute_t<S>;
  const std::int64_t channels = s.depth + (s.choose ? 5 : 0), cols = s.heads * s.width;
  const std::int64_t row = channels + 3, w_stride = cols + 2, out_row = s.width + 1;
  const auto a = random.vector<C>(s.batch * (s.tokens * row + 4));
  const auto w = random.vector<S>(s.depth * w_stride);
  const auto bias = random.vector<C>(cols);
  const auto identity = random.vector<C>(s.batch * s.tokens * (s.width + 7));
  std::vector<std::int64_t> chosen;
  for (std::int64_t k = 0; k < s.depth; ++k) chosen.push_back(s.choose ? channels - 1 - k : k);

  cpu::Product<C, S> p;
  p.a = {a.data(), {s.batch, s.tokens, channels}, {s.tokens * row + 4, row, 1}};
  if (s.choose) p.channels = chosen;
  p.w = {w.data(), {s.depth, cols}, {w_stride, 1}};
  if (s.bias) p.bias = bias.data();
  if (s.identity)
    p.identity = {
        identity.data(), {s.batch, s.tokens, s.width}, {s.tokens * (s.width + 7), s.width + 7, 1}};
  // [batch, heads, tokens, width] in memory
  std::vector<C> out(static_cast<std::size_t>(s.batch * s.heads * s.tokens * out_row),
                     std::numeric_limits<C>::quiet_NaN());
  p.out = {out.data(),
           {s.batch, s.tokens, s.heads, s.width},
           {s.heads * s.tokens * out_row, out_row, s.tokens * out_row, 1}};

  cpu::Arena measured;
  cpu::take_product_scratch<C>(measured, s.batch * s.tokens, s.depth, cols, threads);
  std::vector<std::byte> memory(measured.required() + 64, std::byte{0xff});  // 0xff...: NaN
  cpu::Arena arena(std::span<std::byte>(memory).first(measured.required()));
  cpu::multiply(p, cpu::take_product_scratch<C>(arena, s.batch * s.tokens, s.depth, cols, threads),
                threads);

  std::int64_t wrong = 0, numbers = 0;
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t t = 0; t < s.tokens; ++t)
      for (std::int64_t h = 0; h < s.heads; ++h)
        for (std::int64_t j = 0; j < s.width; ++j) {
          double value = 0, magnitude = 0;
          const auto add = [&](double term) { value += term, magnitude += std::abs(term); };
          if (s.identity) add(static_cast<double>(p.identity(b, t, j)));
          if (s.bias) add(static_cast<double>(bias[static_cast<std::size_t>(h * s.width + j)]));
          for (std::int64_t k = 0; k < s.depth; ++k)
            add(static_cast<double>(p.a(b, t, chosen[static_cast<std::size_t>(k)])) *
                static_cast<double>(p.w(k, h * s.width + j)));
          const double tolerance =
              1.01 * static_cast<double>(s.depth + 2) * StorageTraits<C>::unit_roundoff * magnitude;
          wrong += !(std::abs(static_cast<double>(p.out(b, t, h, j)) - value) <= tolerance);
        }
  for (C x : out) numbers += !std::isnan(x);
  CAPTURE(s.batch, s.tokens, s.depth, s.heads, s.width, s.identity, s.bias, s.choose, threads);
  CHECK(wrong == 0);
  CHECK(numbers == s.batch * s.tokens * cols);  // nothing between the rows
  for (std::size_t i = measured.required(); i < memory.size(); ++i)
    REQUIRE(memory[i] == std::byte{0xff});  // nothing behind the scratch
}

}  // namespace

TEMPLATE_TEST_CASE("a product equals a loop, for every count of rows", "", double, float,
                   Eigen::half, Eigen::bfloat16) {
  Random random(1);
  for (std::int64_t rows = 1; rows <= 33; ++rows) {
    const Shape s{1,
                  rows,
                  random.in(0, 40),
                  random.in(1, 4),
                  random.in(1, 40),
                  random.coin(),
                  random.coin(),
                  random.coin()};
    check_product<TestType>(random, s, 1);
  }
}

TEMPLATE_TEST_CASE("a product equals a loop, for batches and whole panels", "", double, float,
                   Eigen::half, Eigen::bfloat16) {
  Random random(2);
  for (int i = 0; i < 30; ++i) {
    const Shape s{random.in(1, 4),      random.in(1, 30), random.in(1, 70), random.in(1, 3),
                  32 * random.in(1, 2), random.coin(),    random.coin(),    random.coin()};
    check_product<TestType>(random, s, static_cast<int>(random.in(1, 3)));
  }
}

TEST_CASE("a product equals a loop, where it needs several blocks") {
  Random random(3);
  using B = cpu::detail::Blocking;
  for (int threads : {1, 2}) {
    check_product<float>(random, {1, 9, 2 * B::kMaxDepth + 5, 1, 7, true, true, true}, threads);
    check_product<float>(random, {1, 9, 3, 5, B::kMaxCols / 4 + 1, true, false, false}, threads);
    check_product<float>(random, {2, B::kMaxRows / 2 + 9, 5, 1, 9, false, true, false}, threads);
    check_product<float>(random, {1, 3, 6, 3, B::kStreamCols / 2, true, true, true}, threads);
    check_product<double>(random, {1, 64, B::kMaxDepth + 1, 2, 65, true, false, true}, threads);
  }
}

TEST_CASE("an extent of zero is a product of nothing") {
  Random random(4);
  check_product<float>(random, {1, 0, 5, 2, 3, false, true, false}, 1);
  check_product<float>(random, {2, 20, 0, 2, 3, true, true, false}, 2);
  check_product<float>(random, {1, 2, 0, 2, 3, false, false, false}, 2);
}

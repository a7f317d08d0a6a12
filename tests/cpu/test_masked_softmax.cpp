#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/random_layer.hpp"
#include "bda/cpu/masked_softmax.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

TEST_CASE("the visible range of a block is the union of its queries'") {
  Random random(6);
  for (int i = 0; i < 500; ++i) {
    const std::int64_t keys = random.in(1, 30), queries = random.in(1, 20);
    const std::int64_t first = random.in(0, 9);
    std::int64_t length = random.in(0, keys);
    AttentionMask<float> mask{.causal = random.coin(), .window = random.in(0, 7)};
    if (random.coin()) mask.key_lengths = &length;
    const std::int64_t query = random.in(0, queries - 1), count = random.in(1, queries - query);
    const auto range = cpu::visible_keys(mask, 0, first, query, count, keys);
    std::int64_t lowest = keys, highest = -1;
    for (std::int64_t q = query; q < query + count; ++q) {
      const std::int64_t position = first + q;
      for (std::int64_t j = 0; j < keys; ++j) {
        const bool seen = (!mask.causal || j <= position) &&
                          (mask.window == 0 || position - j < mask.window) &&
                          (mask.key_lengths == nullptr || j < length);
        if (!seen) continue;
        lowest = std::min(lowest, j);
        highest = std::max(highest, j);
      }
    }
    CAPTURE(keys, first, query, count, mask.causal, mask.window, length);
    if (highest < 0) {
      CHECK(range.size() == 0);
    } else {
      CHECK(range.first <= lowest);
      CHECK(range.last > highest);
      CHECK(range.first >= 0);
      CHECK(range.last <= keys);
    }
  }
}

TEST_CASE("a row of -inf biases counts as one that sees no key") {
  const float none = -std::numeric_limits<float>::infinity();
  const std::vector<float> bias{none, none, 0, none};
  cpu::ScoreFunction<float> f;
  f.mask = {.causal = false};
  f.mask.bias = {bias.data(), {1, 2, 2}};
  std::vector<float> scores{5, 6, 7, 8}, sums(2);
  cpu::masked_exponentials(f, 0, 0, 0, 2, {0, 2}, MatrixView<float>(scores.data(), {2, 2}),
                           sums.data());
  CHECK(scores[0] == 0);
  CHECK(scores[1] == 0);
  CHECK(sums[0] == 1);
  CHECK(scores[2] == 1);
  CHECK(scores[3] < 1e-37f);  // a vectorised exp does not go below the smallest normal number
  CHECK(std::abs(sums[1] - 1) < 1e-6f);
}

TEST_CASE("logits far out of exp's range do not overflow") {
  cpu::ScoreFunction<float> f;
  f.mask = {.causal = false};
  f.has_sink = true;
  f.sink = 3e4f;
  std::vector<float> scores{1e30f, -1e30f, 2e4f, 1e4f}, sums(2);
  cpu::masked_exponentials(f, 0, 0, 0, 2, {0, 2}, MatrixView<float>(scores.data(), {2, 2}),
                           sums.data());
  CHECK(scores[0] == 1);
  CHECK(sums[0] == 1);
  CHECK(scores[2] < 1e-37f);  // the sink takes it all
  CHECK(sums[1] == 1);
}

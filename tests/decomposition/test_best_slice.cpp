#include <bda/decomposition/best_slice.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <limits>

#include "decomposition/random_heads.hpp"
#include "support/error_of.hpp"

using bda::BestSlice;
using bda::IndexSet;
using bda_test::alphas;
using bda_test::random_heads;
using bda_test::view;

TEST_CASE("the chosen slice has the smallest sum of squared alphas of all allowed ones") {
  const auto spectrum = GENERATE(bda_test::kGaussian, bda_test::kModerate, bda_test::kSteep);
  const std::int64_t multiple = GENERATE(1, 3, 8, 40);
  const Eigen::Index d = 37, r = 5;  // d - r is a multiple of 8 only
  const auto heads = random_heads(11, 4, 9, d, r, spectrum);

  double best = std::numeric_limits<double>::infinity();
  IndexSet expected;
  for (std::int64_t offset = 0; offset <= d - r; offset += multiple) {
    const IndexSet slice = IndexSet::slice(d, offset, r);
    const double sum = alphas(heads, {slice, {}}).squaredNorm();
    if (sum < best) {
      best = sum;
      expected = slice;
    }
  }
  const bda::Basis basis = BestSlice{multiple}.select(view(heads), {});
  CHECK(basis.channels == expected);
  CHECK(basis.rotation.size() == 0);
}

TEST_CASE("the offset is a multiple of 64 by default") {
  const auto heads = random_heads(3, 2, 8, 200, 6);
  const bda::Basis basis = BestSlice{}.select(view(heads), {});
  CHECK(basis.channels.is_slice());
  CHECK(basis.channels.size() == 6);
  CHECK(basis.channels.offset() % 64 == 0);
}

TEST_CASE("a slice that is dependent in one head is not chosen") {
  auto heads = random_heads(5, 3, 7, 12, 3);
  // Good for the other heads, impossible for this one.
  heads[1].right.row(4) = heads[1].right.row(3);
  heads[1].right.row(7).setZero();
  heads[1].right.row(9) = 2 * heads[1].right.row(10);
  const bda::Basis basis = BestSlice{3}.select(view(heads), {});
  CHECK(basis.channels.offset() == 0);
  CHECK(alphas(heads, basis).allFinite());
}

TEST_CASE("every width from one channel to all") {
  const Eigen::Index r = GENERATE(1, 2, 11);
  const auto heads = random_heads(8, 2, 5, 11, r);
  const bda::Basis basis = BestSlice{1}.select(view(heads), {});
  CHECK(basis.channels.size() == r);
  for (const auto& head : heads) CHECK(bda_test::reproduction_error(head, basis) < 1);
}

TEST_CASE("the choice of a slice does not depend on the number of threads or the scalar") {
  const auto heads = random_heads<float>(21, 5, 9, 40, 7, bda_test::kModerate);
  const auto wide = bda_test::widened(heads);
  const bda::Basis one = BestSlice{2}.select(view(heads), {.threads = 1});
  CHECK(BestSlice{2}.select(view(heads), {.threads = 3}).channels == one.channels);
  CHECK(BestSlice{2}.select(view(wide), {.threads = 2}).channels == one.channels);
}

TEST_CASE("what best_slice refuses") {
  auto heads = random_heads(4, 2, 6, 10, 3);
  SECTION("a multiple below 1") {
    const auto error = bda_test::error_of([&] { BestSlice{0}.select(view(heads), {}); });
    CHECK(error.name() == "BestSlice.multiple");
    CHECK(error.given() == "0");
  }
  SECTION("heads for which every slice is dependent") {
    heads[1].right.topRows(3).setZero();
    const auto error = bda_test::error_of([&] { BestSlice{64}.select(view(heads), {}); });
    CHECK(error.expected() == "a slice of 3 channels independent in each head");
    CHECK(error.given() == "dependent channels in all 1 slices at multiples of 64");
  }
  SECTION("a weight that is not finite") {
    heads[1].right(2, 2) = std::numeric_limits<double>::quiet_NaN();
    CHECK(bda_test::error_of([&] { BestSlice{}.select(view(heads), {}); }).name() ==
          "heads[1].right");
  }
  SECTION("no heads") {
    heads.clear();
    CHECK(bda_test::error_of([&] { BestSlice{}.select(view(heads), {}); }).name() == "heads.size");
  }
}

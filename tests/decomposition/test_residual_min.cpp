#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <random>
#include <span>

#include "bda/decomposition/decompose_heads.hpp"
#include "bda/decomposition/first_r.hpp"
#include "bda/decomposition/residual_min.hpp"
#include "decomposition/random_heads.hpp"

using namespace bda;

namespace {

double mean_residual(std::span<const HeadFactors<float>> heads, const IndexSet& basis,
                     DType storage) {
  return size_of(storage) == 2 ? decompose_heads<float>(heads, basis, storage, Rounding::kPlain, 1)
                                     .report.mean_residual()
                               : decompose_heads<double>(heads, basis, storage, Rounding::kPlain, 1)
                                     .report.mean_residual();
}

}  // namespace

TEST_CASE("residual_min takes the side with the smaller mean residual", "[residual_min]") {
  const unsigned seed = GENERATE(Catch::Generators::range(1u, 13u));
  std::mt19937 random(seed);
  const auto heads = bda_test::random_heads<float>(random(), 3, 90, 31, 7);
  // In double both residuals are a few roundings, and which is smaller depends on the order of
  // sums: unless one side has two channels that are nearly the same, here by turns.
  auto lopsided = heads;
  for (auto& head : lopsided) {
    const Eigen::Index twin = seed % 2 == 0 ? 0 : 24;
    head.right.row(twin + 1) = head.right.row(twin) + 1e-5 * head.right.row(twin + 1);
  }
  const IndexSet first = IndexSet::slice(31, 0, 7), last = IndexSet::slice(31, 24, 7);
  for (const DType storage : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    const std::span<const HeadFactors<float>> group(storage == DType::kF64 ? lopsided : heads);
    const Basis chosen = ResidualMin{}.select(group, {storage, 2});
    const bool first_is_better =
        mean_residual(group, first, storage) <= mean_residual(group, last, storage);
    CHECK(chosen.channels == (first_is_better ? first : last));
    if (storage == DType::kF64) CHECK(first_is_better == (seed % 2 == 1));
  }
}

TEST_CASE("residual_min leaves the side that cannot represent a head", "[residual_min]") {
  std::mt19937 random(1);
  auto heads = bda_test::random_heads<float>(random(), 3, 90, 31, 7);
  heads[1].right.row(0).setZero();
  const Basis chosen =
      ResidualMin{}.select(std::span<const HeadFactors<float>>(heads), {DType::kBF16, 1});
  CHECK(chosen.channels == IndexSet::slice(31, 24, 7));
}

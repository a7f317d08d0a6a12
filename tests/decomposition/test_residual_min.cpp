#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <cmath>
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
  std::mt19937 random(GENERATE(Catch::Generators::range(1u, 13u)));
  const auto heads = bda_test::random_heads<float>(random(), 3, 90, 31, 7);
  const std::span<const HeadFactors<float>> group(heads);
  const IndexSet first = IndexSet::slice(31, 0, 7), last = IndexSet::slice(31, 24, 7);
  for (const DType storage : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    const Basis chosen = ResidualMin{}.select(group, {storage, 2});
    const double of_first = mean_residual(group, first, storage);
    const double of_last = mean_residual(group, last, storage);
    // In double both are a few roundings, which another order of summation turns into others.
    if (storage == DType::kF64 && std::abs(of_first - of_last) < 0.1 * of_last) continue;
    CHECK(chosen.channels == (of_first <= of_last ? first : last));
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

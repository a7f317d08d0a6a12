#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>

#include "bda/linear/prepare.hpp"
#include "linear/pairs.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using namespace bda::linear;
using Mat = Eigen::MatrixXd;

namespace {

/// W as the stored layer gives it back.
template <class T>
Mat rebuilt(const BasisWeights<T>& w) {
  const auto wide = [](const bda::Matrix<T>& m) {
    return Mat(bda::linalg::map(m).template cast<bda::compute_t<T>>().template cast<double>());
  };
  const Mat b = wide(w.b), c = wide(w.c);
  Mat out(w.in_dim(), w.out_dim());
  out(Eigen::all, w.basis.indices()) = b;
  out(Eigen::all, w.basis.rest()) = b * c;
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("A low-rank layer is a basis of its outputs and coefficients", "[linear]",
                   double, float, Eigen::half, Eigen::bfloat16) {
  std::mt19937 random(1);
  for (int i = 0; i < 40; ++i) {
    const std::int64_t r = in(random, 1, 16), inputs = in(random, 1, 50);
    const std::int64_t outputs = r + in(random, 0, 40);
    if (inputs < r) continue;  // the factors' own rank is r then
    const FactorPair pair = random_pair(random, inputs, outputs, r);
    for (const bda::Rounding rounding : {bda::Rounding::kPlain, bda::Rounding::kAware}) {
      const auto done = prepare<TestType>(pair, {.rounding = rounding});
      const BasisWeights<TestType>& w = done.weights[0];
      CAPTURE(r, inputs, outputs);
      CHECK(w.parameters() == r * (inputs + outputs - r));
      CHECK(w.parameters() == basis_cost(inputs, outputs, r));
      CHECK(w.bytes() == w.parameters() * std::int64_t(sizeof(TestType)));
      const Mat exact = pair.left * pair.right;
      // as in test_decompose_matrix.cpp: alpha bounds what rounding B and C does
      const double u = bda::StorageTraits<TestType>::unit_roundoff + 32 * double(r) * 0x1p-53;
      const double bound = 3 * std::sqrt(double(r)) * u * done.report.max_alpha() *
                           (1 + done.report.max_coefficient());
      CHECK((rebuilt(w) - exact).norm() <= bound * exact.norm());
    }
  }
}

TEST_CASE("At half the rank a quarter less is stored than by the factor pair", "[linear]") {
  for (std::int64_t d : {64, 1024, 4096}) {
    CHECK(factor_pair_cost(d, d, d / 2) == dense_cost(d, d));
    CHECK(4 * basis_cost(d, d, d / 2) == 3 * factor_pair_cost(d, d, d / 2));
  }
  std::mt19937 random(2);
  const FactorPair pair = random_pair(random, 32, 32, 16);
  CHECK(4 * prepare<float>(pair).weights[0].bytes() == 3 * factor_weights<float>(pair).bytes());
}

TEST_CASE("Pivoting selects a basis with small coefficients", "[linear]") {
  std::mt19937 random(3);
  FactorPair pair = random_pair(random, 30, 40, 10);
  pair.right.leftCols(10) *= 1e-8;  // the first outputs are next to nothing
  const auto pivoted = prepare<double>(pair),
             first = prepare<double>(pair, {.basis = bda::FirstR{}});
  for (std::int64_t i : pivoted.weights[0].basis.indices()) CHECK(i >= 10);
  CHECK(pivoted.report.max_coefficient() < 10);
  CHECK(first.report.max_coefficient() > 1e6);
}

TEST_CASE("Layers of a group share their basis", "[linear]") {
  std::mt19937 random(4);
  const FactorPair pairs[] = {random_pair(random, 20, 30, 8), random_pair(random, 25, 30, 8)};
  const auto done = prepare_group<double>(pairs);
  REQUIRE(done.weights.size() == 2);
  CHECK(done.weights[0].basis == done.weights[1].basis);
  for (std::size_t i = 0; i < 2; ++i) {
    const Mat exact = pairs[i].left * pairs[i].right;
    CHECK((rebuilt(done.weights[i]) - exact).norm() <=
          1e-14 * done.report.max_alpha() * (1 + done.report.max_coefficient()) * exact.norm());
  }
}

TEST_CASE("A factor pair of smaller rank than it has columns is decomposed exactly", "[linear]") {
  std::mt19937 random(5);
  FactorPair pair = random_pair(random, 20, 30, 6);
  pair.right.row(5) = pair.right.row(4);
  const auto done = prepare<double>(pair);
  const Mat exact = pair.left * pair.right;
  CHECK((rebuilt(done.weights[0]) - exact).norm() <= 1e-9 * exact.norm());
}

TEST_CASE("Layers that cannot be decomposed are refused", "[linear]") {
  std::mt19937 random(6);
  const auto message = [](const FactorPair& pair) -> std::string {
    return error_of([&] { return prepare<float>(pair); }).what();
  };
  const FactorPair good = random_pair(random, 8, 9, 4);
  FactorPair bad = good;
  bad.right = random_matrix(random, 3, 9);
  CHECK(message(bad) == "factors.right.rows: expected 4 (left.cols), got 3");
  bad = random_pair(random, 8, 3, 4);
  CHECK(message(bad) == "factors.left.cols: expected a value from 1 to 3, got 4");
  bad = good;
  bad.left(0, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK(message(bad) == "factors.left: expected finite values, got Inf or NaN");
  bad = good;
  bad.right(0, 0) = std::numeric_limits<double>::infinity();
  CHECK(message(bad) == "factors.right: expected finite values, got Inf or NaN");
  bad.left.resize(0, 4);
  CHECK(message(bad) == "factors.left.rows: expected at least 1, got 0");
  CHECK(std::string(error_of([&] {
                      return prepare<float>(good, {.basis = bda::LatentRotation{}});
                    }).what()) ==
        "options.basis: expected a strategy that leaves the outputs in place, got latent_rotation");
  CHECK(std::string(error_of([&] { return prepare_group<float>({}); }).what()) ==
        "layers.size: expected at least 1, got 0");
  const FactorPair unequal[] = {good, random_pair(random, 8, 10, 4)};
  CHECK_THROWS_AS(prepare_group<float>(unequal), bda::Error);
  FactorPair huge = good;
  huge.left *= 1e9;
  CHECK_THROWS_AS(prepare<Eigen::half>(huge), bda::Error);
}

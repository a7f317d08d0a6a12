#include <bda/decomposition/joint_pivot.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <limits>

#include "decomposition/random_heads.hpp"
#include "support/error_of.hpp"

using bda::IndexSet;
using bda::JointPivot;
using bda_test::alphas;
using bda_test::random_heads;
using bda_test::view;

TEST_CASE("joint pivoting beats the first and the last channels") {
  const auto spectrum = GENERATE(bda_test::kGaussian, bda_test::kModerate, bda_test::kSteep);
  const Eigen::Index d = 61, r = 15;
  const auto heads = random_heads(1, 5, 70, d, r, spectrum);
  const bda::Basis basis = JointPivot{}.select(view(heads), {});
  CHECK(basis.channels.size() == r);
  CHECK(basis.rotation.size() == 0);
  const double joint = alphas(heads, basis).maxCoeff();
  CHECK(joint < alphas(heads, {IndexSet::slice(d, 0, r), {}}).maxCoeff());
  CHECK(joint < alphas(heads, {IndexSet::slice(d, d - r, r), {}}).maxCoeff());
  for (const auto& head : heads) CHECK(bda_test::reproduction_error(head, basis) < 1);
}

TEST_CASE("no single exchange improves the result by more than the minimal gain") {
  const std::uint64_t seed = GENERATE(Catch::Generators::range(std::uint64_t{1}, std::uint64_t{6}));
  const auto spectrum = GENERATE(bda_test::kGaussian, bda_test::kSteep);
  const Eigen::Index d = 13, r = 4;
  const auto heads = random_heads(seed, 3, 8, d, r, spectrum);
  const JointPivot strategy{.minimal_gain = 1e-6};
  const IndexSet chosen = strategy.select(view(heads), {}).channels;
  const double reached = alphas(heads, {chosen, {}}).squaredNorm();
  for (std::int64_t i = 0; i < r; ++i)
    for (std::int64_t other : chosen.rest()) {
      std::vector<std::int64_t> channels = chosen.indices();
      channels[static_cast<std::size_t>(i)] = other;
      const double exchanged = alphas(heads, {IndexSet(d, channels), {}}).squaredNorm();
      CHECK(exchanged > (1 - 1e-5) * reached);
    }
}

TEST_CASE("exchanges lower the sum of squared alphas that pivoting reaches") {
  double pivoted = 0, exchanged = 0;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const auto heads = random_heads(seed, 6, 40, 48, 12);
    const JointPivot greedy{.minimal_gain = 2};  // more than all of it: none is made
    const double before = alphas(heads, greedy.select(view(heads), {})).squaredNorm();
    const double after = alphas(heads, JointPivot{}.select(view(heads), {})).squaredNorm();
    CHECK(after <= before * (1 + 1e-9));
    pivoted += before;
    exchanged += after;
  }
  CHECK(exchanged < 0.9 * pivoted);
}

TEST_CASE("with one channel to choose, the one of the largest joint volume is chosen") {
  const auto heads = random_heads(9, 4, 6, 23, 1);
  Eigen::VectorXd volume = Eigen::VectorXd::Zero(23);
  for (const auto& head : heads) volume += head.right.cwiseAbs2().array().log().matrix();
  Eigen::Index best = 0;
  volume.maxCoeff(&best);
  const bda::Basis basis = JointPivot{}.select(view(heads), {});
  CHECK(basis.channels == IndexSet(23, {best}));
  // Any channel of a matrix of rank one has |B|² (1 + |C|²) = |W|².
  CHECK((alphas(heads, basis).array() - 1).abs().maxCoeff() < 100 * 0x1p-52);
}

TEST_CASE("with all channels to choose, all are chosen") {
  const auto heads = random_heads(9, 2, 6, 7, 7);
  CHECK(JointPivot{}.select(view(heads), {}).channels == IndexSet::slice(7, 0, 7));
}

TEST_CASE("zero and duplicate channels stay out of the basis") {
  const Eigen::Index d = 20, r = 6;
  auto heads = random_heads(10, 3, 9, d, r);
  heads[0].right.row(3).setZero();
  heads[1].right.row(11) *= -2;
  for (auto& head : heads) head.right.row(12) = 3 * head.right.row(11);
  const bda::Basis basis = JointPivot{}.select(view(heads), {});
  int copies = 0;
  for (std::int64_t channel : basis.channels.indices()) {
    CHECK(channel != 3);
    copies += channel == 11 || channel == 12;
  }
  CHECK(copies <= 1);
  CHECK(alphas(heads, basis).allFinite());
}

TEST_CASE("a head without a product does not disturb the pivots of the others") {
  auto heads = random_heads(12, 3, 9, 16, 4);
  heads[1].left.setZero();
  const bda::Basis basis = JointPivot{}.select(view(heads), {});
  CHECK(alphas(heads, basis).allFinite());
  for (auto& head : heads) head.left.setZero();
  CHECK(JointPivot{}.select(view(heads), {}).channels.size() == 4);
}

TEST_CASE("the pivots do not depend on the number of threads or the scalar") {
  const auto heads = random_heads<float>(13, 5, 30, 70, 18, bda_test::kModerate);
  const auto wide = bda_test::widened(heads);
  const bda::Basis one = JointPivot{}.select(view(heads), {.threads = 1});
  CHECK(JointPivot{}.select(view(heads), {.threads = 2}).channels == one.channels);
  CHECK(JointPivot{}.select(view(heads), {.threads = 7}).channels == one.channels);
  CHECK(JointPivot{}.select(view(wide), {.threads = 3}).channels == one.channels);
}

TEST_CASE("what joint_pivot refuses") {
  auto heads = random_heads(4, 2, 6, 10, 3);
  SECTION("heads that read disjoint channels") {
    heads[0].right.bottomRows(5).setZero();
    heads[1].right.topRows(5).setZero();
    const auto error = bda_test::error_of([&] { JointPivot{}.select(view(heads), {}); });
    CHECK(error.name().substr(0, 6) == "heads[");
    CHECK(error.expected() == "3 channels that are independent in every head");
    CHECK(error.given() == "only 0 by joint pivoting");
  }
  SECTION("a rank-deficient head") {
    heads[1].right.setZero();
    CHECK(bda_test::error_of([&] { JointPivot{}.select(view(heads), {}); }).name() ==
          "heads[1].right");
  }
  SECTION("a weight that is not finite") {
    heads[0].left(5, 2) = std::numeric_limits<double>::infinity();
    CHECK(bda_test::error_of([&] { JointPivot{}.select(view(heads), {}); }).name() ==
          "heads[0].left");
  }
  SECTION("heads that differ in shape") {
    heads[1].right.conservativeResize(9, 3);
    const auto error = bda_test::error_of([&] { JointPivot{}.select(view(heads), {}); });
    CHECK(error.name() == "heads[1].right.rows");
    CHECK(error.given() == "9");
  }
}

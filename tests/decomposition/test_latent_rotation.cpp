#include <bda/decomposition/joint_pivot.hpp>
#include <bda/decomposition/latent_rotation.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <limits>

#include "decomposition/random_heads.hpp"
#include "support/error_of.hpp"

using bda::IndexSet;
using bda::LatentRotation;
using bda_test::alphas;
using bda_test::random_heads;
using bda_test::view;
using Heads = std::vector<bda::HeadFactors<double>>;

namespace {

/// |QᵀQ - I| over what a product of d Householder reflections may leave: each is orthogonal to a
/// few eps per entry it touches, d^1.5 eps in norm together.
double departure(const bda::linalg::RowMatrix<double>& q) {
  const auto d = static_cast<double>(q.rows());
  const auto identity = Eigen::MatrixXd::Identity(q.rows(), q.cols());
  return (q.transpose() * q - identity).norm() / (std::pow(d, 1.5) * 0x1p-52);
}

void check_side(const Heads& heads, const bda::Basis& basis) {
  const Eigen::Index d = heads[0].right.rows();
  REQUIRE(basis.rotation.rows() == d);
  REQUIRE(basis.rotation.cols() == d);
  CHECK(departure(basis.rotation) < 1);
  CHECK(basis.channels.size() == heads[0].right.cols());
  for (const auto& head : heads) CHECK(bda_test::reproduction_error(head, basis) < 1);
}

}  // namespace

TEST_CASE("one rotation makes both sides as accurate as a factor pair") {
  const auto spectrum = GENERATE(bda_test::kGaussian, bda_test::kModerate, bda_test::kSteep);
  const Eigen::Index d = 64, r_qk = 16, r_vo = 12;
  const Heads qk = random_heads(1, 4, 80, d, r_qk, spectrum);
  const Heads vo = random_heads(2, 4, 80, d, r_vo, spectrum);
  const auto [k, v] = LatentRotation{}.select_joint(view(qk), view(vo), {});
  CHECK(k.rotation == v.rotation);
  CHECK(k.channels == IndexSet::slice(d, 0, r_qk));
  CHECK(v.channels == IndexSet::slice(d, d - r_vo, r_vo));
  check_side(qk, k);
  check_side(vo, v);
  // noise.hpp: a factor pair has up to 1.6. A basis of unrotated channels is several times worse.
  CHECK(alphas(qk, k).maxCoeff() < 1.6);
  CHECK(alphas(vo, v).maxCoeff() < 1.6);
  const bda::Basis pivots = bda::JointPivot{}.select(view(qk), {});
  CHECK(alphas(qk, k).maxCoeff() < 0.7 * alphas(qk, pivots).maxCoeff());
}

TEST_CASE("a rotation for one side") {
  const Eigen::Index d = 40, r = 10;
  const Heads heads = random_heads(3, 5, 30, d, r, bda_test::kModerate);
  const bda::Basis basis = LatentRotation{}.select(view(heads), {});
  CHECK(basis.channels == IndexSet::slice(d, 0, r));
  check_side(heads, basis);
  CHECK(alphas(heads, basis).maxCoeff() < 1.6);
}

TEST_CASE("the two sides' bases may overlap, touch or fill the whole space") {
  const auto [r_qk, r_vo] = GENERATE(std::pair{5, 6}, std::pair{7, 6}, std::pair{9, 8},
                                     std::pair{11, 3}, std::pair{11, 11}, std::pair{1, 1});
  const Eigen::Index d = 11;
  const Heads qk = random_heads(4, 2, 13, d, r_qk), vo = random_heads(5, 2, 13, d, r_vo);
  const auto [k, v] = LatentRotation{}.select_joint(view(qk), view(vo), {});
  CHECK(k.rotation == v.rotation);
  CHECK(k.channels == IndexSet::slice(d, 0, r_qk));
  CHECK(v.channels == IndexSet::slice(d, d - r_vo, r_vo));
  check_side(qk, k);
  check_side(vo, v);
  CHECK(alphas(qk, k).maxCoeff() < 1.6);
  CHECK(alphas(vo, v).maxCoeff() < 1.6);
}

TEST_CASE("heads that use few channels get a good rotation") {
  const Eigen::Index d = 12, r = 3;
  Heads heads = random_heads(6, 3, 8, d, r);
  heads[0].right.topRows(9).setZero();
  heads[1].right.bottomRows(9).setZero();
  const bda::Basis basis = LatentRotation{}.select(view(heads), {});
  check_side(heads, basis);
  CHECK(alphas(heads, basis).maxCoeff() < 1.6);
}

TEST_CASE("a head without a product gets a finite rotation") {
  Heads heads = random_heads(6, 3, 8, 12, 3);
  heads[2].left.setZero();
  CHECK(alphas(heads, LatentRotation{}.select(view(heads), {})).maxCoeff() < 1.6);
  for (auto& head : heads) head.left.setZero();
  CHECK(departure(LatentRotation{}.select(view(heads), {}).rotation) < 1);
}

TEST_CASE("a single head is aligned with its own directions") {
  const Heads heads = random_heads(7, 1, 9, 14, 4);
  const bda::Basis basis = LatentRotation{}.select(view(heads), {});
  // Its orthonormal span as basis would have alpha 1.
  CHECK(alphas(heads, basis)(0) < 1.01);
}

TEST_CASE("the rotation has the same bits for any number of threads") {
  const auto qk = random_heads<float>(8, 3, 20, 70, 9), vo = random_heads<float>(9, 3, 20, 70, 8);
  const LatentRotation strategy{.max_iterations = 15};
  const auto one = strategy.select_joint(view(qk), view(vo), {.threads = 1});
  for (int threads : {2, 5})
    CHECK(strategy.select_joint(view(qk), view(vo), {.threads = threads}).first.rotation ==
          one.first.rotation);
}

TEST_CASE("what latent_rotation refuses") {
  Heads qk = random_heads(4, 2, 6, 10, 3), vo = random_heads(5, 2, 6, 10, 4);
  const auto error = [&](const LatentRotation& strategy) {
    return bda_test::error_of([&] { strategy.select_joint(view(qk), view(vo), {}); });
  };
  SECTION("sides of different latents") {
    vo = random_heads(5, 2, 6, 9, 4);
    CHECK(error({}).name() == "vo[0].right.rows");
    CHECK(error({}).given() == "9");
  }
  SECTION("no iterations") {
    CHECK(error({.max_iterations = 0}).name() == "LatentRotation.max_iterations");
  }
  SECTION("a tolerance that is not positive") {
    CHECK(error({.tolerance = 0}).name() == "LatentRotation.tolerance");
  }
  SECTION("a rank-deficient head") {
    vo[1].right.col(0) = vo[1].right.col(2);
    CHECK(error({}).name() == "heads[1].right");
  }
  SECTION("a weight that is not finite") {
    qk[1].left(0, 0) = std::numeric_limits<double>::quiet_NaN();
    CHECK(error({}).name() == "heads[1].left");
  }
}

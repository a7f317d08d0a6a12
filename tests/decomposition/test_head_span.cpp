#include <Eigen/Cholesky>
#include <bda/decomposition/head_span.hpp>
#include <bda/decomposition/noise.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "decomposition/random_heads.hpp"
#include "support/error_of.hpp"

using bda_test::random_heads;
using bda_test::view;
using Catch::Matchers::WithinRel;

TEST_CASE("a span is orthonormal and keeps the energy of every channel") {
  const auto spectrum = GENERATE(bda_test::kGaussian, bda_test::kSteep);
  const Eigen::Index m = GENERATE(2, 30), d = 17, r = 6;  // left factors of low and of full rank
  const auto heads = random_heads(1, 3, m, d, r, spectrum);
  const auto spans = bda::head_spans(view(heads), 2);
  for (std::size_t h = 0; h < heads.size(); ++h) {
    const auto& u = spans[h].span;
    // Householder: d r eps in norm, with a small constant
    CHECK((u.transpose() * u - Eigen::MatrixXd::Identity(r, r)).norm() < 17 * 6 * 0x1p-52);
    const Eigen::MatrixXd w = heads[h].left * heads[h].right.transpose();
    const Eigen::VectorXd expected = w.colwise().squaredNorm().transpose() / w.squaredNorm();
    // `condense` perturbs leftᵀ left by r eps of its norm, the QR `right` by d r eps of its norm.
    const double norms = heads[h].left.norm() * heads[h].right.norm() / w.norm();
    CHECK((bda::basis_energy(spans[h].span, spans[h].weight) - expected).cwiseAbs().maxCoeff() <
          4 * 17 * 6 * 0x1p-52 * norms * norms);
  }
}

TEST_CASE("the squared amplification of a span is that of its head") {
  const auto heads = random_heads(2, 2, 20, 15, 4, bda_test::kModerate);
  const auto spans = bda::head_spans(view(heads), 1);
  const bda::IndexSet basis(15, {1, 4, 9, 14});
  for (std::size_t h = 0; h < heads.size(); ++h) {
    const bda::linalg::RowMatrix<double> rows = spans[h].span(basis.indices(), Eigen::all);
    const Eigen::VectorXd energy =
        bda::basis_energy(spans[h].span, spans[h].weight)(basis.indices());
    const double alpha = bda::noise_amplification(heads[h], basis);
    // Both invert a 4 x 4 block: eps times its condition, which bounds 1 + |C| and so is at most
    // a few times alpha² here; 1e-10 leaves room for a condition of 1e4.
    CHECK_THAT(bda::squared_noise_amplification(rows, energy), WithinRel(alpha * alpha, 1e-10));
  }
}

TEST_CASE("dependent rows amplify without bound") {
  bda::linalg::RowMatrix<double> rows = bda::linalg::RowMatrix<double>::Identity(3, 3);
  const Eigen::VectorXd energy = Eigen::VectorXd::Constant(3, 1.0 / 3);
  CHECK(bda::squared_noise_amplification(rows, energy) == 1);
  rows.row(2) << 0.1, 0.7, 0;  // a combination of the others, inexact in binary
  CHECK(std::isinf(bda::squared_noise_amplification(rows, energy)));
}

TEST_CASE("a head without a product counts as if its energy were even") {
  auto heads = random_heads(6, 1, 5, 9, 3);
  heads[0].left.setZero();
  const auto spans = bda::head_spans(view(heads), 1);
  const Eigen::VectorXd even = spans[0].span.rowwise().squaredNorm() / 3;
  CHECK((bda::basis_energy(spans[0].span, spans[0].weight) - even).norm() < 9 * 0x1p-52);
}

TEST_CASE("a rank-deficient head is refused by name, with its rank") {
  auto heads = random_heads(7, 3, 5, 9, 4);
  std::string rank;
  SECTION("all zero") {
    heads[2].right.setZero();
    rank = "rank 0";
  }
  SECTION("duplicate width channels") {
    heads[2].right.col(1) = heads[2].right.col(3);
    rank = "rank 3";
  }
  SECTION("too few channels in use") {
    heads[2].right.topRows(7).setZero();
    rank = "rank 2";
  }
  const auto error = bda_test::error_of([&] { bda::head_spans(view(heads), 2); });
  CHECK(error.name() == "heads[2].right");
  CHECK(error.expected() == "rank 4");
  CHECK(error.given().substr(0, 6) == rank);
}

#include <Eigen/Eigenvalues>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>

#include "bda/linear/truncate.hpp"
#include "linear/pairs.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using namespace bda::linear;

TEST_CASE("Truncation keeps the largest singular values", "[linear]") {
  std::mt19937 random(1);
  for (int i = 0; i < 20; ++i) {
    const std::int64_t inputs = in(random, 1, 30), outputs = in(random, 1, 30);
    const std::int64_t rank = in(random, 1, std::min(inputs, outputs));
    const auto w = random_matrix(random, inputs, outputs);
    const Truncation t = truncate(w, RankTarget{rank});
    CHECK(t.factors.left.cols() == rank);
    CHECK(t.factors.right.rows() == rank);
    const auto error = (t.factors.left * t.factors.right - w).norm() / w.norm();
    // the lost singular values, by the eigenvalues of WᵀW: root of their rounding, 1e-8
    const Eigen::VectorXd squares =
        Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(w.transpose() * w).eigenvalues();
    const double lost = std::sqrt(std::max(0.0, squares.head(squares.size() - rank).sum()));
    CHECK(std::abs(error - lost / w.norm()) <= 1e-7);
    CHECK(std::abs(error - t.error) <= 1e-13);
  }
}

TEST_CASE("An energy target takes the smallest rank that holds it", "[linear]") {
  std::mt19937 random(2);
  const auto w = random_matrix(random, 12, 20);
  for (const double share : {1e-9, 0.3, 0.9, 0.999, 1.0}) {
    const Truncation t = truncate(w, EnergyTarget{share});
    const auto rank = t.factors.rank();
    const auto held = [&](std::int64_t r) {
      return t.singular_values.head(r).squaredNorm() / t.singular_values.squaredNorm();
    };
    CHECK(held(rank) >= share - 1e-15);
    if (rank > 1) CHECK(held(rank - 1) < share);
  }
  CHECK(truncate(random_pair(random, 12, 20, 3).left * random_pair(random, 3, 20, 3).right,
                 EnergyTarget{1 - 1e-12})
            .factors.rank() == 3);
  CHECK(truncate(Eigen::MatrixXd::Zero(3, 4), EnergyTarget{1}).factors.rank() == 1);
  CHECK(truncate(Eigen::MatrixXd::Zero(3, 4), EnergyTarget{1}).error == 0);
}

TEST_CASE("Targets and matrices that make no sense are refused", "[linear]") {
  std::mt19937 random(3);
  bda::linalg::RowMatrix<double> w = random_matrix(random, 4, 6);
  const auto message = [&](const TruncationTarget& target) -> std::string {
    return error_of([&] { return truncate(w, target); }).what();
  };
  CHECK(message(RankTarget{0}) == "target.rank: expected a value from 1 to 4, got 0");
  CHECK(message(RankTarget{5}) == "target.rank: expected a value from 1 to 4, got 5");
  CHECK(message(EnergyTarget{0}) == "target.share: expected above 0 and at most 1, got 0.000000");
  CHECK(message(EnergyTarget{1.5}) == "target.share: expected above 0 and at most 1, got 1.500000");
  w(0, 0) = std::numeric_limits<double>::infinity();
  CHECK(message(RankTarget{1}) == "W: expected finite values, got Inf or NaN");
  w.resize(0, 3);
  CHECK(message(RankTarget{1}) == "W.size: expected at least 1, got 0");
}

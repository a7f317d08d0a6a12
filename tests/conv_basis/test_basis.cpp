#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <string>

#include "bda/conv_basis/basis.hpp"
#include "conv_basis/instances.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using bda::conv_basis::ConvBasis;
using bda::conv_basis::decompose;

TEST_CASE("A basis is the sum of its sub-convolution matrices", "[conv_basis]") {
  Random random(1);
  for (int i = 0; i < 100; ++i) {
    const std::int64_t n = random.in(1, 40), k = random.in(1, std::min<std::int64_t>(n, 6));
    const RandomBasis r(random, n, k);
    const ConvBasis h = r.basis();
    CHECK(h.dense() == r.dense());
    for (std::int64_t t = 0; t < k; ++t) CHECK(h.term(t) == r.terms[std::size_t(t)]);
    const std::int64_t j = random.in(0, n - 1);
    CHECK(h.column_of_matrix(j, n - j) == h.dense().col(j).tail(n - j));
  }
}

TEST_CASE("Every lower-triangular matrix has one smallest basis, and it is found", "[conv_basis]") {
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = random.in(1, 40), k = random.in(1, std::min<std::int64_t>(n, 6));
    const RandomBasis r(random, n, k);
    const ConvBasis h = decompose(r.dense());
    REQUIRE(h.terms() == k);
    for (std::int64_t t = 0; t < k; ++t) {
      CHECK(h.width(t) == r.terms[std::size_t(t)].size());
      CHECK(h.term(t) == r.terms[std::size_t(t)]);
    }
  }
  // any matrix: up to n terms, and exact to the last bit
  const Eigen::MatrixXd any = random.normal(20, 20).triangularView<Eigen::Lower>();
  CHECK(decompose(any).terms() == 20);
  CHECK(decompose(any).dense() == any);
  CHECK(decompose(Eigen::MatrixXd::Zero(5, 5)).terms() == 0);
}

TEST_CASE("Matrices without a conv basis are refused", "[conv_basis]") {
  const auto message = [](const Eigen::MatrixXd& h) -> std::string {
    return error_of([&] { return decompose(h); }).what();
  };
  CHECK(message(Eigen::MatrixXd::Zero(3, 4)) == "H.cols: expected 3 (rows), got 4");
  CHECK(message(Eigen::MatrixXd::Zero(0, 0)) == "ConvBasis.size: expected at least 1, got 0");
  Eigen::MatrixXd h = Eigen::MatrixXd::Zero(3, 3);
  h(0, 2) = 1;
  CHECK(message(h) == "H(0, 2): expected 0, as H is lower-triangular, got 1.000000");
  h(0, 2) = 0;
  h(2, 1) = std::numeric_limits<double>::quiet_NaN();
  CHECK(message(h) == "ConvBasis.column: expected finite values, got Inf or NaN");
}

TEST_CASE("Widths descend", "[conv_basis]") {
  ConvBasis h(4);
  const auto message = [&](Eigen::Index width) -> std::string {
    return error_of([&] { h.add_column(Eigen::VectorXd::Ones(width)); }).what();
  };
  CHECK(message(5) == "ConvBasis.column.size: expected a value from 1 to 4, got 5");
  CHECK(message(0) == "ConvBasis.column.size: expected a value from 1 to 4, got 0");
  h.add_column(Eigen::VectorXd::Ones(3));
  CHECK(message(3) == "ConvBasis.column.size: expected a value from 1 to 2, got 3");
  CHECK(std::string(error_of([&] { return h.column_of_matrix(4, 0); }).what()) ==
        "j: expected a value from 0 to 3, got 4");
  CHECK(std::string(error_of([&] { return h.column_of_matrix(2, 3); }).what()) ==
        "count: expected a value from 0 to 2, got 3");
}

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "bda/decomposition/decompose_matrix.hpp"
#include "support/error_of.hpp"

using namespace bda;

namespace {

template <class S>
linalg::RowMatrix<S> random_matrix(std::mt19937& random, Eigen::Index rows, Eigen::Index cols) {
  std::normal_distribution<double> normal;
  return linalg::RowMatrix<S>::NullaryExpr(rows, cols,
                                           [&] { return static_cast<S>(normal(random)); });
}

using Mat = Eigen::MatrixXd;

/// W of the column form, [m, n], before any rotation.
template <class S>
Mat columns_rebuilt(const MatrixDecomposition<S>& d) {
  const Mat b = d.basis_matrix.template cast<double>(), c = d.coefficients.template cast<double>();
  Mat w(b.rows(), d.basis.channels.dim());
  w(Eigen::all, d.basis.channels.indices()) = b;
  w(Eigen::all, d.basis.channels.rest()) = b * c.transpose();
  if (d.basis.rotation.size() > 0) w = (w * d.basis.rotation.transpose()).eval();
  return w;
}

template <class S>
Mat rows_rebuilt(const MatrixDecomposition<S>& d) {
  const Mat b = d.basis_matrix.template cast<double>(), c = d.coefficients.template cast<double>();
  Mat w(d.basis.channels.dim(), b.cols());
  w(d.basis.channels.indices(), Eigen::all) = b;
  w(d.basis.channels.rest(), Eigen::all) = c * b;
  if (d.basis.rotation.size() > 0) w = (d.basis.rotation * w).eval();
  return w;
}

/// Storing B and C costs at most u (1 + u) in each: |W| u (2 + u) alpha, as the report's alpha
/// bounds |B| |[I, C]| / |W| (Frobenius norms, Cauchy-Schwarz over the r basis channels: sqrt(r)).
/// The solve and a dense W's own factors add a multiple of r eps in double, weighted alike.
template <class S>
double bound(const MatrixDecomposition<S>& d, std::int64_t r) {
  const double u = StorageTraits<S>::unit_roundoff + 32 * static_cast<double>(r) * 0x1p-53;
  return 3 * std::sqrt(static_cast<double>(r)) * u * d.report.max_alpha() *
         (1 + d.report.max_coefficient());
}

}  // namespace

TEMPLATE_TEST_CASE("A matrix is its basis and coefficients", "[decompose_matrix]", float, double) {
  using S = TestType;
  std::mt19937 random(GENERATE(Catch::Generators::range(1u, 9u)));
  const auto in = [&](int low, int high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  const std::int64_t r = in(1, 12), m = r + in(0, 30), n = r + in(0, 30);
  const auto left = random_matrix<S>(random, m, r), right = random_matrix<S>(random, n, r);
  const Mat w = left.template cast<double>() * right.template cast<double>().transpose();
  for (const char* name :
       {"first_r", "last_r", "residual_min", "best_slice", "joint_pivot", "latent_rotation"}) {
    INFO(name << " m " << m << " n " << n << " r " << r);
    const BasisStrategy strategy = parse_basis_strategy(name);
    const auto columns = column_decomposition<S>(left, right, strategy);
    CHECK(columns.basis_matrix.rows() == m);
    CHECK(columns.coefficients.rows() == n - r);
    CHECK((columns_rebuilt(columns) - w).norm() <= bound(columns, r) * w.norm());
    const auto rows = row_decomposition<S>(left, right, strategy);
    CHECK(rows.basis_matrix.cols() == n);
    CHECK(rows.coefficients.rows() == m - r);
    CHECK((rows_rebuilt(rows) - w).norm() <= bound(rows, r) * w.norm());
  }
}

TEMPLATE_TEST_CASE("A dense matrix needs no factors", "[decompose_matrix]", float, double) {
  using S = TestType;
  std::mt19937 random(GENERATE(Catch::Generators::range(1u, 6u)));
  const std::int64_t r = 6, m = 23, n = 31;
  const linalg::RowMatrix<S> w =
      (random_matrix<double>(random, m, r) * random_matrix<double>(random, r, n))
          .template cast<S>();
  const Mat exact = w.template cast<double>();
  // A dense W of type S has rank r only up to its own rounding: sqrt(m n) u relative to the
  // smallest direction kept, which C carries into the rest.
  const double own = 4 * std::sqrt(static_cast<double>(m * n)) * StorageTraits<S>::unit_roundoff;
  const auto columns = column_decomposition<S>(w, r, JointPivot{});
  CHECK((columns_rebuilt(columns) - exact).norm() <=
        (bound(columns, r) + own * columns.report.max_alpha()) * exact.norm());
  const auto rows = row_decomposition<S>(w, r, JointPivot{});
  CHECK((rows_rebuilt(rows) - exact).norm() <=
        (bound(rows, r) + own * rows.report.max_alpha()) * exact.norm());
}

TEST_CASE("Dense matrices that cannot be decomposed are refused", "[decompose_matrix]") {
  std::mt19937 random(3);
  linalg::RowMatrix<double> w =
      random_matrix<double>(random, 12, 5) * random_matrix<double>(random, 5, 14);
  const auto message = [&](std::int64_t rank) -> std::string {
    return bda_test::error_of([&] { return column_decomposition<double>(w, rank, FirstR{}); })
        .what();
  };
  CHECK(message(4) == "rank: expected at least the numerical rank of W, 5, got 4");
  CHECK(message(0) == "rank: expected a value from 1 to 12, got 0");
  CHECK(message(13) == "rank: expected a value from 1 to 12, got 13");
  CHECK_NOTHROW(column_decomposition<double>(w, 5, FirstR{}));
  w(3, 3) = std::numeric_limits<double>::infinity();
  CHECK(message(5) == "W: expected finite values, got Inf or NaN");
}

TEST_CASE("Factors with two equal columns are decomposed exactly", "[decompose_matrix]") {
  std::mt19937 random(5);
  const linalg::RowMatrix<double> left = random_matrix<double>(random, 20, 6);
  linalg::RowMatrix<double> right = random_matrix<double>(random, 30, 6);
  right.col(5) = right.col(4);  // a pivot of exactly zero
  const auto d = column_decomposition<double>(left, right, JointPivot{});
  const Mat w = left * right.transpose();
  CHECK((columns_rebuilt(d) - w).norm() <= 1e-9 * w.norm());
}

TEST_CASE("Strategies have names", "[basis_strategy]") {
  for (const char* name :
       {"first_r", "last_r", "residual_min", "best_slice", "joint_pivot", "latent_rotation"})
    CHECK(name_of(parse_basis_strategy(name)) == name);
  CHECK(std::string(bda_test::error_of([] { return parse_basis_strategy("firstr"); }).what()) ==
        "basis: expected one of first_r, last_r, residual_min, best_slice, joint_pivot, "
        "latent_rotation, got firstr");
}

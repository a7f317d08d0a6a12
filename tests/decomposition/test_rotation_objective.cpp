#include <bda/decomposition/rotation_objective.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <random>

#include "decomposition/random_heads.hpp"

using bda::RotationObjective;
using bda_test::random_heads;
using bda_test::view;
using Catch::Matchers::WithinRel;
using Matrix = bda::linalg::RowMatrix<double>;

namespace {

Matrix random_matrix(std::uint64_t seed, Eigen::Index rows, Eigen::Index cols) {
  std::mt19937_64 bits(seed);
  std::normal_distribution<double> normal;
  return Matrix::NullaryExpr(rows, cols, [&] { return normal(bits); });
}

Matrix random_orthonormal(std::uint64_t seed, Eigen::Index rows, Eigen::Index cols) {
  return random_matrix(seed, rows, cols).householderQr().householderQ() *
         Matrix::Identity(rows, cols);
}

/// Two groups of heads over columns that overlap where r_first + r_second > columns.
RotationObjective<double> two_groups(Eigen::Index d, Eigen::Index columns, int threads = 1) {
  RotationObjective<double> objective(columns, threads);
  objective.add(bda::head_spans(view(random_heads(1, 3, 12, d, 4, bda_test::kModerate)), 1), 0);
  objective.add(bda::head_spans(view(random_heads(2, 2, 12, d, 3)), 1), columns - 3);
  return objective;
}

}  // namespace

TEST_CASE("without smoothing the objective is the sum of squared alphas") {
  const Eigen::Index d = 11, r = 4;
  const auto heads = random_heads(3, 3, 15, d, r, bda_test::kModerate);
  RotationObjective<double> objective(r, 1);
  objective.add(bda::head_spans(view(heads), 1), 0);
  CHECK(objective.heads() == 3);
  const bda::linalg::RowMatrix<double> rotation = random_orthonormal(4, d, d);
  const bda::Basis basis{bda::IndexSet::slice(d, 0, r), rotation};
  Matrix gradient;
  // X is squared and inverted: eps times the fourth power of its condition, a few tens here.
  CHECK_THAT(objective(rotation.leftCols(r), {}, gradient),
             WithinRel(bda_test::alphas(heads, basis).squaredNorm(), 1e-8));
}

TEST_CASE("smoothing adds a ridge to the eigenvalues and a floor to the energies") {
  const Eigen::Index d = 9, r = 3;
  const auto span = bda::head_spans(view(random_heads(5, 1, 10, d, r)), 1)[0];
  RotationObjective<double> objective(r, 1);
  objective.add({span}, 0);
  const Matrix a = random_orthonormal(6, d, r);
  Matrix gradient;
  const double value = objective(a, {.ridge = 0.3, .weight = 0.7}, gradient);

  const Matrix x = a.transpose() * span.span;
  const Matrix z = (x * x.transpose() + 0.3 * 3 / 9 * Matrix::Identity(r, r)).inverse();
  const Eigen::ArrayXd energy = (x * span.weight).rowwise().squaredNorm().array() + 0.7 / 9;
  // Two ways of inverting a matrix of condition below 1e2.
  CHECK_THAT(value, WithinRel(energy.matrix().dot(z.diagonal()), 1e-12));
}

TEST_CASE("the gradient is the derivative, also where the two sides' columns overlap") {
  const Eigen::Index d = 10, columns = GENERATE(7, 5);  // 4 + 3 needed
  const auto smoothing =
      GENERATE(bda::Smoothing{0, 0}, bda::Smoothing{0, 0.1}, bda::Smoothing{1, 0.5});
  const auto objective = two_groups(d, columns);
  const Matrix a = random_orthonormal(7, d, columns);
  Matrix gradient, unused;
  const double value = objective(a, smoothing, gradient);
  REQUIRE(gradient.rows() == d);
  REQUIRE(gradient.cols() == columns);
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    const Matrix direction = random_matrix(100 + seed, d, columns).normalized();
    const auto difference = [&](double h) {
      return (objective(a + h * direction, smoothing, unused) -
              objective(a - h * direction, smoothing, unused)) /
             (2 * h);
    };
    // A central difference is off by c h² + O(h⁴), so halving h shows c: the difference of the two
    // is 3 c h². Rounding adds the value's error (eps times the fourth power of X's condition,
    // at most 1e4 here) over h.
    const double h = 1e-5, fine = difference(h), coarse = difference(2 * h);
    const double bound = 2 * std::abs(coarse - fine) + 1e4 * 0x1p-52 * value / h;
    const double slope = gradient.cwiseProduct(direction).sum();
    CHECK(std::abs(slope - fine) < bound);
    CHECK(bound < 1e-2 * gradient.norm());  // or the check above would mean nothing
  }
}

TEST_CASE("value and gradient have the same bits for any number of threads") {
  const Eigen::Index d = 150, columns = 7;  // three blocks of rows, the last one partial
  const Matrix a = random_orthonormal(8, d, columns);
  Matrix one, many;
  const double value = two_groups(d, columns, 1)(a, {0.1, 0.2}, one);
  for (int threads : {2, 3, 16}) {
    CHECK(two_groups(d, columns, threads)(a, {0.1, 0.2}, many) == value);
    CHECK(many == one);
  }
}

TEST_CASE("a dependent basis has infinite value") {
  bda::HeadFactors<double> head = random_heads(9, 1, 5, 6, 2)[0];
  head.right.topRows(2).setZero();
  RotationObjective<double> objective(2, 1);
  objective.add({bda::head_span(head, "head")}, 0);
  Matrix gradient;
  CHECK(std::isinf(objective(Matrix::Identity(6, 2), {}, gradient)));
  CHECK(std::isfinite(objective(Matrix::Identity(6, 2), {1, 1}, gradient)));
}

#include <bda/linalg/cholesky.hpp>
#include <bda/linalg/lu.hpp>
#include <bda/linalg/rank.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <limits>
#include <random>

// The oracles are Eigen's own products, and the defining equations of what is computed.

using namespace bda::linalg;

namespace {

template <class S>
RowMatrix<S> random_matrix(Eigen::Index rows, Eigen::Index cols, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<S> normal;
  return RowMatrix<S>::NullaryExpr(rows, cols, [&] { return normal(random); });
}

template <class S>
constexpr double eps = static_cast<double>(std::numeric_limits<S>::epsilon());

/// |a - b| <= terms eps |size|, entrywise sums of `terms` terms being at most that far off.
template <class S>
void check_close(const RowMatrix<S>& a, const RowMatrix<S>& b, double terms, double size) {
  REQUIRE(a.rows() == b.rows());
  REQUIRE(a.cols() == b.cols());
  CHECK(static_cast<double>((a - b).norm()) <= terms * eps<S> * size);
}

template <class S>
double norm(const RowMatrix<S>& a) {
  return static_cast<double>(a.norm());
}

}  // namespace

TEMPLATE_TEST_CASE("products of blocks are those of Eigen", "", float, double) {
  using Mat = RowMatrix<TestType>;
  const Eigen::Index m = GENERATE(1, 7, 40), k = GENERATE(0, 1, 33), n = GENERATE(1, 5, 64);
  const Mat storage_a = random_matrix<TestType>(m + 2, k + 3, 1);
  const Mat storage_b = random_matrix<TestType>(k + 1, n + 2, 2);
  const auto a = storage_a.block(1, 2, m, k);
  const auto b = storage_b.block(0, 1, k, n);
  const Mat at = a.transpose(), bt = b.transpose();
  const Mat expected = a * b;
  const double size = norm<TestType>(a) * norm<TestType>(b), terms = 2 * static_cast<double>(k) + 2;
  check_close<TestType>(multiply(a, b), expected, terms, size);
  check_close<TestType>(transposed_multiply(at, b), expected, terms, size);
  check_close<TestType>(multiply_transposed(a, bt), expected, terms, size);
  Mat sum = random_matrix<TestType>(m, n + 4, 3);
  const Mat before = sum;
  add_product(sum.middleCols(3, n), a, b, TestType(-2));
  CHECK(sum.leftCols(3) == before.leftCols(3));
  CHECK(sum.rightCols(1) == before.rightCols(1));
  check_close<TestType>(sum.middleCols(3, n), before.middleCols(3, n) - TestType(2) * expected,
                        2 * terms, size + norm(before));
}

TEMPLATE_TEST_CASE("a Gram matrix is AᵀA, both triangles", "", float, double) {
  using Mat = RowMatrix<TestType>;
  const Eigen::Index m = GENERATE(1, 30, 600), r = GENERATE(1, 2, 9, 70);
  const Mat a = random_matrix<TestType>(m, r, 4);
  const Mat g = gram<TestType>(a);
  check_close<TestType>(g, a.transpose() * a, 2 * static_cast<double>(m), norm(a) * norm(a));
  const RowMatrix<double> wide = a.template cast<double>();
  check_close<double>(gram<double>(a), wide.transpose() * wide, 2 * static_cast<double>(m),
                      norm(a) * norm(a));
}

TEMPLATE_TEST_CASE("division by a triangle", "", float, double) {
  using Mat = RowMatrix<TestType>;
  const Eigen::Index n = GENERATE(1, 10), r = GENERATE(1, 31, 32, 33, 100);
  // A diagonal of r makes it well conditioned: 1/r <= |T⁻¹| <= 2/r.
  Mat t = random_matrix<TestType>(r, r, 5) / std::sqrt(static_cast<TestType>(r));
  t.diagonal().setConstant(static_cast<TestType>(r));
  const Mat b = random_matrix<TestType>(n, r, 6);
  const double terms = 4 * static_cast<double>(r);
  Mat x = b;
  divide_by_triangle<Triangle::kUpper>(x, t);
  check_close<TestType>(x * Mat(t.template triangularView<Eigen::Upper>()), b, terms, norm(b));
  x = b;
  divide_by_triangle<Triangle::kLower>(x, t);
  check_close<TestType>(x * Mat(t.template triangularView<Eigen::Lower>()), b, terms, norm(b));
  t /= static_cast<TestType>(r);
  x = b;
  divide_by_triangle<Triangle::kUnitLower>(x, t);
  check_close<TestType>(x * Mat(t.template triangularView<Eigen::UnitLower>()), b, terms, norm(b));
}

TEST_CASE("LU divides and knows its condition") {
  const Eigen::Index r = GENERATE(1, 2, 40, 130);
  RowMatrix<double> a = random_matrix<double>(r, r, 7);
  const RowMatrix<double> b = random_matrix<double>(9, r, 8);
  const Lu<double> lu(a);
  const double n = static_cast<double>(r), condition = norm(a) * norm(lu.inverse());
  check_close<double>(lu.divide(b) * a, b, 4 * n * condition, norm(b));
  // The estimate is never below the truth, and seldom ten times above; r between the norms.
  CHECK(lu.reciprocal_condition() >= 1 / (n * condition));
  CHECK(lu.reciprocal_condition() <= 10 * n / condition);
  a.row(r / 2).setZero();
  CHECK(Lu<double>(a).reciprocal_condition() == 0);
}

TEST_CASE("Cholesky divides, and says where it cannot") {
  const Eigen::Index r = GENERATE(1, 5, 33, 90);
  const RowMatrix<double> tall = random_matrix<double>(3 * r, r, 9);
  RowMatrix<double> a = tall.transpose() * tall;
  const RowMatrix<double> b = random_matrix<double>(4, r, 10);
  const Cholesky<double> cholesky(a);
  REQUIRE(cholesky.positive_definite());
  const RowMatrix<double> u = cholesky.upper();
  const double n = static_cast<double>(r);
  check_close<double>(u.transpose() * u, a, 4 * n, norm(a));
  // A tall Gaussian matrix of 3 r rows has a condition of about 4, its square 16.
  check_close<double>(cholesky.divide(b) * a, b, 4 * n * 100 * n, norm(b));
  a(r - 1, r - 1) = -1;
  CHECK_FALSE(Cholesky<double>(a).positive_definite());
}

TEST_CASE("QR is orthonormal, and as complete as asked for") {
  const Eigen::Index m = 40, r = GENERATE(1, 7, 40);
  const RowMatrix<double> a = random_matrix<double>(m, r, 11);
  for (const Eigen::Index count : {r, m}) {
    const Qr<double> factors = qr(a, count);
    const double terms = 4 * static_cast<double>(m * r);
    check_close<double>(factors.q.leftCols(r) * factors.r, a, terms, norm(a));
    check_close<double>(factors.q.transpose() * factors.q,
                        RowMatrix<double>::Identity(count, count), terms, std::sqrt(40.0));
    CHECK(factors.r.isUpperTriangular(0));
  }
}

TEST_CASE("rank factors and the pseudo-inverse of deficient matrices") {
  const Eigen::Index r = 12, rank = GENERATE(0, 1, 5, 12);
  const RowMatrix<double> a =
      random_matrix<double>(r, rank, 12) * random_matrix<double>(rank, r, 13);
  const RankFactors<double> factors = rank_factors(a, 1e-12);
  REQUIRE(factors.rank() == rank);
  check_close<double>(factors.left * factors.right.transpose(), a, 1000, norm(a));
  const PseudoInverse<double> inverse(a, 1e-12);
  CHECK(inverse.rank() == rank);
  const RowMatrix<double> plus = inverse.divide(RowMatrix<double>::Identity(r, r));
  // Penrose's four conditions
  const double terms = 1000 * (1 + norm(a) * norm(plus));
  check_close<double>(a * plus * a, a, terms, norm(a));
  check_close<double>(plus * a * plus, plus, terms, norm(plus));
  check_close<double>((a * plus).transpose(), a * plus, terms, 4);
  check_close<double>((plus * a).transpose(), plus * a, terms, 4);
}

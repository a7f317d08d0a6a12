#include <bda/linalg/cholesky.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <limits>
#include <random>

namespace {

using bda::linalg::condense;
using bda::linalg::RowMatrix;

template <class S>
RowMatrix<S> random_matrix(std::int64_t rows, std::int64_t cols, std::mt19937& random) {
  std::normal_distribution<S> normal;
  return RowMatrix<S>::NullaryExpr(rows, cols, [&] { return normal(random); });
}

// |LᵀL - AᵀA| <= (m + 2 r (r + 1)) eps |A|²: the Gram matrix is summed over m terms, and the
// factorisation's backward error is gamma(r + 1) |Lᵀ||L|, whose norm is at most r |A|², once for
// the factorisation and once for what is left of a semidefinite pivot. LᵀL is evaluated in double.
template <class S>
void check_condensed(const RowMatrix<S>& a) {
  const RowMatrix<double> wide = a.template cast<double>();
  const RowMatrix<double> l = condense(a);
  const auto m = static_cast<double>(a.rows()), r = static_cast<double>(a.cols());
  REQUIRE(l.rows() == a.cols());
  REQUIRE(l.cols() == a.cols());
  const double error = (l.transpose() * l - wide.transpose() * wide).norm();
  const double bound = (m + 2 * r * (r + 1)) *
                       static_cast<double>(std::numeric_limits<S>::epsilon()) * wide.squaredNorm();
  CAPTURE(m, r);
  REQUIRE(error <= bound);
}

TEMPLATE_TEST_CASE("A condensed factor has the Gram matrix of the tall one", "", float, double) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t r = 1 + static_cast<std::int64_t>(random() % 17);
    const std::int64_t m = 1 + static_cast<std::int64_t>(random() % 60);  // also fewer rows than r
    check_condensed<TestType>(random_matrix<TestType>(m, r, random));
  }
}

TEMPLATE_TEST_CASE("Dependent columns are condensed like any others", "", float, double) {
  std::mt19937 random(4);
  for (int trial = 0; trial < 20; ++trial) {
    RowMatrix<TestType> a = random_matrix<TestType>(31, 9, random);
    a.col(7) = a.col(2);
    a.col(4) = a.col(1) + a.col(3);
    if (trial % 2) a.col(0).setZero();
    check_condensed<TestType>(a);
  }
  check_condensed<TestType>(RowMatrix<TestType>::Zero(5, 3));
  check_condensed<TestType>(RowMatrix<TestType>::Ones(7, 6));
}

}  // namespace

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "bda/conv_basis/product.hpp"
#include "conv_basis/instances.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using namespace bda::conv_basis;

TEST_CASE("Transform lengths are just above what is needed", "[conv_basis]") {
  for (std::int64_t needed = 1; needed < 5000; ++needed) {
    const std::int64_t length = transform_length(needed);
    CHECK(length >= needed);
    CHECK(length <= std::max<std::int64_t>(4, needed * 4 / 3 + 1));
  }
}

TEST_CASE("A sub-convolution by FFT is the product with its matrix", "[conv_basis]") {
  Random random(3);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = random.in(1, 200), m = random.in(1, n);
    const Eigen::VectorXd b = random.normal(m, 1), v = random.normal(n, 1);
    const Eigen::VectorXd exact =
        (conv(b, n).cast<long double>() * v.cast<long double>()).cast<double>();
    const double bound =
        convolution_roundoff(transform_length(2 * m - 1)) * b.norm() * v.tail(m).norm();
    CHECK((sub_convolution(b, v) - exact).lpNorm<Eigen::Infinity>() <= bound);
  }
  const std::string message =
      error_of([] { return sub_convolution(Eigen::VectorXd(3), Eigen::VectorXd(2)); }).what();
  CHECK(message == "b.size: expected a value from 1 to 2, got 3");
}

TEST_CASE("Products with a basis and its transpose are those of the dense matrix", "[conv_basis]") {
  Random random(4);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = random.in(1, 150), k = random.in(1, std::min<std::int64_t>(n, 8));
    const ConvBasis h = RandomBasis(random, n, k).basis();
    const Eigen::MatrixXd v = random.normal(n, random.in(1, 5));
    const LongMatrix dense = h.dense().cast<long double>(), wide = v.cast<long double>();
    const auto error = [](const Eigen::MatrixXd& a, const LongMatrix& b) {
      return static_cast<double>((a.cast<long double>() - b).cwiseAbs().maxCoeff());
    };
    CHECK(error(multiply(h, v), dense * wide) <= multiply_roundoff(h, v));
    // The transpose convolves each column with all of its rows of v instead.
    double bound = 0;
    for (std::int64_t t = 0; t < k; ++t)
      bound += (convolution_roundoff(transform_length(2 * h.width(t))) + 1e-15) *
               h.column(t).norm() * v.norm();
    CHECK(error(multiply_transposed(h, v), dense.transpose() * wide) <= bound);
  }
  const ConvBasis h(3);
  CHECK(multiply(h, Eigen::MatrixXd::Ones(3, 2)) == Eigen::MatrixXd::Zero(3, 2));
  CHECK(std::string(error_of([&] { return multiply(h, Eigen::MatrixXd(2, 1)); }).what()) ==
        "v.rows: expected 3 (size of H), got 2");
  CHECK(std::string(error_of([&] {
                      return multiply_transposed(h, Eigen::MatrixXd(2, 1));
                    }).what()) == "v.rows: expected 3 (size of H), got 2");
}

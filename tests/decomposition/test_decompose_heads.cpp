#include <Eigen/SVD>
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "bda/decomposition/decompose_heads.hpp"
#include "bda/decomposition/noise.hpp"
#include "decomposition/random_heads.hpp"
#include "support/error_of.hpp"

using namespace bda;

namespace {

using Mat = linalg::RowMatrix<double>;

Mat random_matrix(std::mt19937& random, Eigen::Index rows, Eigen::Index cols) {
  std::normal_distribution<double> normal;
  return Mat::NullaryExpr(rows, cols, [&] { return normal(random); });
}

/// What a stored head gives back, in the channels' own order.
template <class W>
Mat rebuilt(const RoundedHead<W>& head, const IndexSet& basis) {
  const Mat b = head.basis.template cast<double>(), c = head.coefficients.template cast<double>();
  Mat w(b.rows(), basis.dim());
  w(Eigen::all, basis.indices()) = b;
  w(Eigen::all, basis.rest()) = b * c.transpose();
  return w;
}

template <class S>
Mat product(const HeadFactors<S>& head) {
  return head.left.template cast<double>() * head.right.transpose();
}

template <class S>
double condition(const HeadFactors<S>& head, const IndexSet& basis) {
  const Eigen::MatrixXd r = head.right(basis.indices(), Eigen::all);
  const auto sigma = Eigen::JacobiSVD<Eigen::MatrixXd>(r).singularValues();
  return sigma(0) / sigma(sigma.size() - 1);
}

IndexSet random_set(std::mt19937& random, std::int64_t d, std::int64_t r) {
  std::vector<std::int64_t> all = IndexSet::slice(d, 0, d).indices();
  std::shuffle(all.begin(), all.end(), random);
  all.resize(static_cast<std::size_t>(r));
  return {d, all};
}

/// Gaussian elimination with partial pivoting solves C R = rest with a residual of at most a small
/// multiple of r eps |C| |R|; B and the product add r eps |B| (1 + |C|). |C| |R| <= cond |rest|.
double double_bound(std::int64_t r, double cond) {
  return 16 * static_cast<double>(r) * 0x1p-53 * (1 + cond);
}

}  // namespace

TEST_CASE("Decomposed in double, a head is its product to rounding", "[decompose_heads]") {
  std::mt19937 random(GENERATE(Catch::Generators::range(1u, 25u)));
  const auto in = [&](int low, int high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  const std::int64_t r = in(1, 23), d = r + in(0, 40), m = in(1, 70), n = in(1, 4);
  const auto heads = bda_test::random_heads<double>(random(), static_cast<int>(n), m, d, r);
  const IndexSet basis = random_set(random, d, r);
  const auto done = decompose_heads<double>(std::span<const HeadFactors<double>>(heads), basis,
                                            DType::kF64, Rounding::kAware, 2);
  for (std::size_t h = 0; h < heads.size(); ++h) {
    const Mat w = product(heads[h]);
    const double error = (rebuilt(done.heads[h], basis) - w).norm() / w.norm();
    CHECK(error <= double_bound(r, condition(heads[h], basis)));
    CHECK(done.report.heads[h].rank == r);
    // alpha by its definition, from B and C as they are
    const auto& stored = done.heads[h];
    const double alpha2 = (stored.basis.colwise().squaredNorm().array() *
                           (1 + stored.coefficients.colwise().squaredNorm().array()))
                              .sum() /
                          w.squaredNorm();
    // Both sums are of positive terms; their inputs differ by the error above.
    const double slack = 64 * double_bound(r, condition(heads[h], basis));
    CHECK(std::abs(done.report.heads[h].alpha / std::sqrt(alpha2) - 1) <= slack);
    CHECK(std::abs(noise_amplification(heads[h], basis) / std::sqrt(alpha2) - 1) <= slack);
  }
}

TEST_CASE("The reported residual is that of the stored product", "[decompose_heads]") {
  std::mt19937 random(GENERATE(Catch::Generators::range(1u, 9u)));
  const std::int64_t r = 11, d = 45, m = 61;
  const auto heads = bda_test::random_heads<float>(random(), 2, m, d, r);
  const IndexSet basis = random_set(random, d, r);
  for (const DType storage : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const Rounding rounding : {Rounding::kPlain, Rounding::kAware}) {
      const std::span<const HeadFactors<float>> group(heads);
      const auto check = [&](const auto& done, double work_roundoff) {
        for (std::size_t h = 0; h < heads.size(); ++h) {
          const Mat w = product(heads[h]);
          const Mat error = rebuilt(done.heads[h], basis) - w;
          const HeadReport& report = done.report.heads[h];
          // D = B̂ - left Rᵀ is known to r u |left| |R|, C's part likewise: relative to |W| by
          // alpha, which bounds |B| |C|.
          const double slack = 8 * static_cast<double>(r) * work_roundoff * report.alpha;
          CHECK(std::abs(report.residual - error.norm() / w.norm()) <= slack);
          const double entries = static_cast<double>(m * d);
          CHECK(std::abs(std::sqrt(report.mean_squared_error * entries) - error.norm()) <=
                slack * w.norm());
          CHECK(report.largest_coefficient ==
                static_cast<double>(done.heads[h].coefficients.cwiseAbs().maxCoeff()));
        }
      };
      if (storage == DType::kF32)
        check(decompose_heads<double>(group, basis, storage, rounding, 1), 0x1p-53);
      else
        check(decompose_heads<float>(group, basis, storage, rounding, 1), 0x1p-24);
    }
  }
}

TEST_CASE("Plain rounding costs alpha, aware rounding less", "[decompose_heads][rounding]") {
  std::mt19937 random(5);
  const std::int64_t r = 32, d = 128, m = 200;
  const auto heads = bda_test::random_heads<float>(random(), 8, m, d, r);
  const IndexSet basis = IndexSet::slice(d, 0, r);
  for (const DType storage : {DType::kF16, DType::kBF16}) {
    const std::span<const HeadFactors<float>> group(heads);
    const auto plain = decompose_heads<float>(group, basis, storage, Rounding::kPlain, 1);
    const auto aware = decompose_heads<float>(group, basis, storage, Rounding::kAware, 1);
    for (std::size_t h = 0; h < heads.size(); ++h) {
      // Independent errors u B in B and u C in C: u² (|B|² (1 + |C|²) + |B|² |C|²), between alpha u
      // and sqrt(2) alpha u; a quarter for the spread over a few thousand roundings.
      const double u = detail::rms_rounding(storage);
      const HeadReport& p = plain.report.heads[h];
      CHECK(p.residual > 0.75 * u * p.alpha);
      CHECK(p.residual < 1.25 * std::sqrt(2.0) * u * p.alpha);
      CHECK(aware.report.heads[h].residual < p.residual);
    }
    CHECK(aware.report.mean_residual() < plain.report.mean_residual() / 1.5);
  }
}

TEST_CASE("Stored values are those of the storage type", "[decompose_heads][rounding]") {
  std::mt19937 random(6);
  const auto heads = bda_test::random_heads<float>(random(), 2, 30, 29, 7);
  const auto done =
      decompose_heads<float>(std::span<const HeadFactors<float>>(heads), IndexSet::slice(29, 3, 7),
                             DType::kBF16, Rounding::kAware, 1);
  for (const auto& head : done.heads)
    for (const auto* m : {&head.basis, &head.coefficients})
      CHECK((m->cast<Eigen::bfloat16>().cast<float>().array() == m->array()).all());
}

TEST_CASE("Successive rounding", "[rounding]") {
  std::mt19937 random(7);
  const Eigen::Index rows = 150, r = 19;
  linalg::RowMatrix<float> x = random_matrix(random, rows, r).cast<float>();

  SECTION("is rounding to nearest where the coordinates do not interact") {
    linalg::RowMatrix<float> nearest = x, successive = x;
    detail::round_to(DType::kF16, nearest, "x");
    const Mat gram = Eigen::VectorXd::LinSpaced(r, 1, 9).asDiagonal();
    detail::round_successively(DType::kF16, successive, linalg::Cholesky(gram), "x");
    CHECK((nearest.array() == successive.array()).all());
  }
  SECTION("keeps the error small in the norm it is given") {
    const Mat a = random_matrix(random, 25, r) * random_matrix(random, r, r);
    const Mat gram = a.transpose() * a;
    linalg::RowMatrix<float> nearest = x, successive = x;
    detail::round_to(DType::kBF16, nearest, "x");
    detail::round_successively(DType::kBF16, successive, linalg::Cholesky(gram), "x");
    const auto error = [&](const linalg::RowMatrix<float>& y) {
      return ((x - y).cast<double>() * a.transpose()).norm();
    };
    CHECK(error(successive) < error(nearest));
  }
}

TEST_CASE("Rank-deficient heads are exact or refused", "[decompose_heads][rank]") {
  std::mt19937 random(8);
  const std::int64_t r = 9, d = 33;
  auto heads = bda_test::random_heads<float>(random(), 3, 20, d, r);
  const std::span<const HeadFactors<float>> group(heads);

  SECTION("an all-zero head") {
    heads[1].right.setZero();
    heads[2].left.setZero();
    for (const DType storage : {DType::kF16, DType::kBF16}) {
      const auto done =
          decompose_heads<float>(group, IndexSet::slice(d, 0, r), storage, Rounding::kAware, 1);
      CHECK(done.heads[1].basis.isZero(0));
      CHECK(done.heads[1].coefficients.isZero(0));
      CHECK(done.heads[2].basis.isZero(0));
      CHECK(done.report.heads[1].residual == 0);
      CHECK(done.report.heads[1].alpha == 0);
      CHECK(done.report.heads[1].rank == 0);
      CHECK(std::isfinite(done.report.max_alpha()));
    }
  }
  SECTION("a head that repeats a direction") {
    heads[1].right.col(4) = 2 * heads[1].right.col(2) - heads[1].right.col(7);
    const IndexSet basis = random_set(random, d, r);
    const auto done = decompose_heads<double>(group, basis, DType::kF64, Rounding::kPlain, 1);
    const Mat w = product(heads[1]);
    CHECK(done.report.heads[1].rank == r - 1);
    // The condition number that counts is that of the independent directions.
    const Eigen::MatrixXd rows = heads[1].right(basis.indices(), Eigen::all);
    const auto sigma = Eigen::JacobiSVD<Eigen::MatrixXd>(rows).singularValues();
    CHECK((rebuilt(done.heads[1], basis) - w).norm() / w.norm() <=
          double_bound(r, sigma(0) / sigma(r - 2)));
  }
  SECTION("basis channels that span less than their head") {
    heads[2].right.row(5).setZero();
    heads[2].right.row(3) = heads[2].right.row(1);
    const std::string message = bda_test::error_of([&] {
                                  return decompose_heads<float>(group, IndexSet::slice(d, 0, r),
                                                                DType::kF16, Rounding::kAware, 1);
                                }).what();
    CHECK(message.find("heads[2]") != std::string::npos);
    CHECK(message.find("9") != std::string::npos);            // the head's rank
    CHECK(message.find("rank 7 of 9") != std::string::npos);  // the basis'
  }
}

TEST_CASE("What cannot be decomposed or stored is refused by head", "[decompose_heads]") {
  std::mt19937 random(9);
  auto heads = bda_test::random_heads<float>(random(), 3, 12, 20, 5);
  const auto decompose = [&](const IndexSet& basis, DType storage) {
    return decompose_heads<float>(std::span<const HeadFactors<float>>(heads), basis, storage,
                                  Rounding::kAware, 1);
  };
  const auto message = [&](const IndexSet& basis, DType storage) -> std::string {
    return bda_test::error_of([&] { return decompose(basis, storage); }).what();
  };
  const IndexSet first = IndexSet::slice(20, 0, 5);
  SECTION("a basis of another width") {
    CHECK(message(IndexSet::slice(20, 0, 4), DType::kF16) ==
          "basis.size: expected 5 (head width), got 4");
    CHECK(message(IndexSet::slice(21, 0, 5), DType::kF16) ==
          "basis.dim: expected 20 (channels of the heads), got 21");
  }
  SECTION("values that are not finite") {
    heads[1].left(3, 2) = std::numeric_limits<float>::quiet_NaN();
    CHECK(message(first, DType::kF16) == "heads[1].left: expected finite values, got Inf or NaN");
  }
  SECTION("coefficients beyond fp16") {
    heads[2].right.topRows(5) *= 1e-6;
    const std::string text = message(first, DType::kF16);
    CHECK(text.find("heads[2].coefficients") != std::string::npos);
    CHECK(text.find("65504") != std::string::npos);
    CHECK_NOTHROW(decompose(first, DType::kBF16));
  }
  SECTION("heads that differ in shape") {
    heads[2].right.resize(19, 5);
    heads[2].right.setOnes();
    CHECK(message(first, DType::kF16) == "heads[2].right.rows: expected 20 (as heads[0]), got 19");
  }
}

TEST_CASE("Decomposition does not depend on the number of threads", "[decompose_heads]") {
  std::mt19937 random(10);
  const auto heads = bda_test::random_heads<float>(random(), 5, 40, 37, 9);
  const std::span<const HeadFactors<float>> group(heads);
  const IndexSet basis = IndexSet::slice(37, 28, 9);
  const auto one = decompose_heads<float>(group, basis, DType::kBF16, Rounding::kAware, 1);
  const auto two = decompose_heads<float>(group, basis, DType::kBF16, Rounding::kAware, 2);
  for (std::size_t h = 0; h < heads.size(); ++h) {
    CHECK(one.heads[h].basis == two.heads[h].basis);
    CHECK(one.heads[h].coefficients == two.heads[h].coefficients);
  }
}

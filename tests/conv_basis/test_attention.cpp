#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <string>

#include "bda/conv_basis/attention.hpp"
#include "conv_basis/instances.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using namespace bda::conv_basis;

TEST_CASE("The exponential of a basis is the masked exponential of its matrix", "[conv_basis]") {
  Random random(10);
  for (int i = 0; i < 100; ++i) {
    const std::int64_t n = random.in(1, 40), k = random.in(1, std::min<std::int64_t>(n, 5));
    const ConvBasis h = RandomBasis(random, n, k).basis();
    const Eigen::MatrixXd dense = h.dense();
    const ConvBasis e = exponential(h);
    const Eigen::MatrixXd expected = dense.array().exp().matrix().triangularView<Eigen::Lower>();
    // an exponential is within an ulp, in a vector as in a scalar
    CHECK(((e.dense() - expected).array().abs() <= 0x1p-51 * expected.array()).all());
    // the terms of the paper
    const bool all = h.start(0) == 0;
    REQUIRE(e.terms() == h.terms() + (all ? 0 : 1));
    if (!all) CHECK(e.term(0) == Eigen::VectorXd::Ones(n));
    Eigen::VectorXd before = Eigen::VectorXd::Zero(n);
    for (std::int64_t t = 0; t < k; ++t) {
      const Eigen::VectorXd sum = before.head(h.width(t)) + h.term(t);
      Eigen::VectorXd term = sum.array().exp();
      if (t > 0 || !all) term -= before.head(h.width(t)).array().exp().matrix();
      const Eigen::ArrayXd size = sum.array().exp() + before.head(h.width(t)).array().exp();
      CHECK(((e.term(t + (all ? 0 : 1)) - term).array().abs() <= 0x1p-51 * size).all());
      before = sum;
    }
    CHECK(largest_entry(h) == Eigen::MatrixXd(dense.triangularView<Eigen::Lower>()).maxCoeff());
  }
}

TEST_CASE("Attention is within the paper's bound and a rounding term, m_i exact", "[conv_basis]") {
  Random random(11);
  double largest_share = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::int64_t n = random.in(16, 128), terms = random.in(1, 5), window = random.in(1, 8);
    const RandomScores s(random, n, terms, random.in(1, 4), window, random.uniform(0.1, 4));
    const Eigen::MatrixXd v = random.normal(n, random.in(1, 6));
    const ConvAttention found =
        attend(s.q, s.k, v, 1, {.window = window, .delta = s.delta, .epsilon = s.epsilon});
    REQUIRE(found.recovery.basis.terms() == terms);
    for (std::int64_t t = 0; t < terms; ++t)
      CHECK(found.recovery.basis.start(t) == s.starts[std::size_t(t)]);
    CHECK(found.recovery.assumptions_held());
    const LongMatrix scores = s.q.cast<long double>() * s.k.transpose().cast<long double>();
    const LongMatrix exact = causal_softmax(scores) * v.cast<long double>();
    const auto error =
        static_cast<double>((found.out.cast<long double>() - exact).cwiseAbs().maxCoeff());
    CHECK(error <= found.approximation_bound + found.rounding_bound);
    largest_share = std::max(largest_share, error / found.approximation_bound);
  }
  CHECK(largest_share > 0.01);  // the bound is one that noise of the size allowed comes near to
}

TEST_CASE("Without noise nothing but rounding is left", "[conv_basis]") {
  Random random(12);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = random.in(2, 200), k = random.in(1, std::min<std::int64_t>(n, 6));
    const ConvBasis large = RandomBasis(random, n, k).basis();
    ConvBasis h(n);  // scores of at most 4.5: the normalizers stay within e^9 n
    for (std::int64_t t = 0; t < k; ++t) h.add_column(large.column(t) / 4);
    const Eigen::MatrixXd v = random.normal(n, random.in(1, 5));
    const AttentionMatrix f(h);
    const LongMatrix exact = causal_softmax(h.dense().cast<long double>());
    const auto error = [](const Eigen::MatrixXd& a, const LongMatrix& b) {
      return static_cast<double>((a.cast<long double>() - b).cwiseAbs().maxCoeff());
    };
    CHECK(error(f.times(v), exact * v.cast<long double>()) <= f.roundoff(v));
    CHECK(f.roundoff(v) < 1e-8);
    // fᵀ v: k convolutions of columns of at most 1 with v / normalizer, and as above
    const double largest = v.cwiseAbs().maxCoeff() / f.normalizer().minCoeff();
    const double transposed = double(n) * largest *
                              (double(k + 1) * convolution_roundoff(transform_length(2 * n)) * 2 /
                                   f.normalizer().minCoeff() +
                               64 * 0x1p-52);
    CHECK(error(f.transposed_times(v), exact.transpose() * v.cast<long double>()) <= transposed);
  }
}

TEST_CASE("A normalizer that drowns in rounding is an error", "[conv_basis]") {
  ConvBasis h(8);
  Eigen::VectorXd column = Eigen::VectorXd::Constant(8, -60.0);
  column(7) = 0;  // row 7 has a score of 0, the others have -60
  h.add_column(column);
  const bda::Error error = error_of([&] { return AttentionMatrix(h).size(); });
  CHECK(error.name().starts_with("scores, row "));
  CHECK(error.expected().starts_with("a sum of exp(score - largest score of all) above"));
  column(7) = -20;
  ConvBasis fine(8);
  fine.add_column(column.cwiseMax(-40));
  CHECK_NOTHROW(AttentionMatrix(fine));
}

TEST_CASE("Shapes must fit", "[conv_basis]") {
  Random random(13);
  const Eigen::MatrixXd q = random.normal(6, 2);
  CHECK(std::string(error_of([&] {
                      return attend(q, q, random.normal(5, 2), 1, {.delta = 1});
                    }).what()) == "v.rows: expected 6 (q.rows), got 5");
  CHECK_THROWS_AS(exponential(RandomBasis(random, 5, 1).basis(), -1000), bda::Error);
}

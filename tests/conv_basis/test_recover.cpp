#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>

#include "bda/conv_basis/recover.hpp"
#include "conv_basis/instances.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using namespace bda::conv_basis;

namespace {

/// A dense matrix as a source, which counts what is read of it.
struct DenseColumns {
  Eigen::MatrixXd h;
  mutable std::int64_t entries = 0;

  [[nodiscard]] std::int64_t size() const { return h.rows(); }
  [[nodiscard]] Eigen::VectorXd column(std::int64_t j, std::int64_t count) const {
    entries += count;
    return h.col(j).segment(j, count);
  }
};

}  // namespace

TEST_CASE("Recovery finds every m_i of close, non-degenerate matrices", "[conv_basis]") {
  Random random(5);
  int instances = 0;
  while (instances < 1000) {
    const std::int64_t n = random.in(8, 150), window = random.in(1, 6);
    const std::int64_t k = random.in(1, std::min<std::int64_t>(n - window, 7));
    const RandomBasis r(random, n, k, window);
    RecoverOptions options;
    options.window = window;
    options.delta = r.delta(window);
    if (options.delta < 1) continue;  // the integers summed to zero: degenerate
    ++instances;
    // sums of integers and of a noise that is a multiple of 2^-20 are exact
    options.epsilon = std::floor(options.delta / (5 * double(window)) * 0x1p20) * 0x1p-20;
    const Eigen::MatrixXd exact = r.dense();
    DenseColumns source{exact};
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t i = j; i < n; ++i)
        source.h(i, j) += options.epsilon * (random.in(0, 1) == 0 ? 1 : -1);

    const Recovery found = recover(source, options);
    REQUIRE(found.basis.terms() == k);
    for (std::int64_t t = 0; t < k; ++t)
      CHECK(found.basis.width(t) == r.terms[std::size_t(t)].size());
    const Eigen::MatrixXd error = (found.basis.dense() - exact).triangularView<Eigen::Lower>();
    CHECK(error.cwiseAbs().maxCoeff() <= options.epsilon);
    CHECK(found.assumptions_held());
    CHECK(found.largest_deviation <= 2 * options.epsilon);
    // k + 1 searches of log2(n) + 2 probes, k columns, and the samples
    const auto searches = static_cast<std::int64_t>(std::ceil(std::log2(double(n)))) + 2;
    CHECK(source.entries <=
          (k + 1) * searches * window + (k + 16 + std::min<std::int64_t>(k, 16)) * n);
  }
}

TEST_CASE("Recovery of exact matrices is exact", "[conv_basis]") {
  Random random(6);
  for (int i = 0; i < 100; ++i) {
    const std::int64_t n = random.in(3, 60);
    const RandomBasis r(random, n, random.in(1, 3), 2);
    RecoverOptions options{.window = 2, .delta = 0.5};
    if (r.delta(2) < 0.5) continue;
    const Recovery found = recover(DenseColumns{r.dense()}, options);
    CHECK(found.basis.dense() == r.dense());
    CHECK(found.largest_deviation == 0);
    CHECK(found.smallest_norm == r.delta(2));
  }
  CHECK(recover(DenseColumns{Eigen::MatrixXd::Zero(9, 9)}, {.delta = 1}).basis.terms() == 0);
}

TEST_CASE("What contradicts the assumptions is reported", "[conv_basis]") {
  Random random(7);
  Eigen::VectorXd b = Eigen::VectorXd::Ones(64);
  DenseColumns source{conv(b, 64)};
  const RecoverOptions options{.window = 4, .delta = 2, .epsilon = 0.1};
  CHECK(recover(source, options).assumptions_held());

  // one deviating entry, in a column that is sampled: 64 (2 * 3 + 1) / 32 = 14
  source.h(40, 14) += 0.7;
  Recovery found = recover(source, options);
  CHECK_FALSE(found.assumptions_held());
  CHECK(std::abs(found.largest_deviation - 0.7) < 1e-15);
  CHECK(found.deviation_column == 14);
  source.h(40, 14) = 1;

  // a change that is undone before the window's last column is not found, but seen by the samples
  for (std::int64_t j = 20; j < 40; ++j) source.h.col(j).tail(64 - j).array() += 3;
  found = recover(source, options);
  CHECK(found.basis.terms() == 1);
  CHECK(found.largest_deviation == 3);
  CHECK_FALSE(found.assumptions_held());

  // the columns behind the last window are not searched, but the last of them is looked at
  DenseColumns tail{conv(b, 64)};
  tail.h(63, 63) += 5;
  found = recover(tail, options);
  CHECK(found.basis.terms() == 1);
  CHECK(found.largest_deviation == 5);
  CHECK(found.deviation_column == 63);

  // more terms than were allowed
  const RandomBasis many(random, 64, 6, 4);
  found =
      recover(DenseColumns{many.dense()}, {.window = 4, .delta = 1, .epsilon = 0, .max_terms = 2});
  CHECK(found.stopped_early);
  CHECK(found.basis.terms() == 2);
  CHECK_FALSE(found.assumptions_held());
}

TEST_CASE("Chosen columns make a basis", "[conv_basis]") {
  Random random(8);
  const Eigen::MatrixXd h = random.normal(12, 12).triangularView<Eigen::Lower>();
  std::vector<std::int64_t> all(12);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = std::int64_t(i);
  CHECK(basis_from_columns(DenseColumns{h}, all).dense() == h);
  CHECK(std::string(error_of([&] { return basis_from_columns(DenseColumns{h}, {12}); }).what()) ==
        "starts: expected a value from 0 to 11, got 12");
}

TEST_CASE("Options that promise nothing are refused", "[conv_basis]") {
  const DenseColumns source{Eigen::MatrixXd::Zero(8, 8)};
  const auto message = [&](const RecoverOptions& options) -> std::string {
    return error_of([&] { return recover(source, options); }).what();
  };
  CHECK(message({.window = 0, .delta = 1}) ==
        "options.window: expected a value from 1 to 8, got 0");
  CHECK(message({.window = 9, .delta = 1}) ==
        "options.window: expected a value from 1 to 8, got 9");
  CHECK(message({}) == "options.delta: expected a positive number, got 0.000000");
  CHECK(message({.window = 2, .delta = 1, .epsilon = 0.2}) ==
        "options.epsilon: expected from 0 to delta / (5 window) = 0.100000, got 0.200000");
  CHECK(message({.delta = 1, .epsilon = std::nan("")}) ==
        "options.epsilon: expected from 0 to delta / (5 window) = 0.200000, got nan");
  CHECK(message({.delta = 1, .max_terms = 0}) == "options.max_terms: expected at least 1, got 0");
  CHECK(message({.delta = 1, .sampled_columns = -1}) ==
        "options.sampled_columns: expected at least 0, got -1");
}

TEST_CASE("Score columns are those of scale Q K^T", "[conv_basis]") {
  Random random(9);
  const Eigen::MatrixXd q = random.normal(7, 3), k = random.normal(7, 3);
  const ScoreColumns scores(q, k, 0.5);
  CHECK(scores.column(2, 5).isApprox(0.5 * (q * k.transpose()).col(2).tail(5), 1e-15));
  const auto message = [](const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) -> std::string {
    return error_of([&] { return ScoreColumns(a, b, 1).size(); }).what();
  };
  CHECK(message(Eigen::MatrixXd(0, 3), k) == "q.rows: expected at least 1, got 0");
  CHECK(message(random.normal(6, 3), k) == "k.rows: expected 6 (q.rows), got 7");
  CHECK(message(random.normal(7, 2), k) == "k.cols: expected 2 (q.cols), got 3");
  Eigen::MatrixXd bad = q;
  bad(1, 1) = std::numeric_limits<double>::infinity();
  CHECK(message(bad, k) == "q: expected finite values, got Inf or NaN");
  CHECK(message(q, bad) == "k: expected finite values, got Inf or NaN");
}

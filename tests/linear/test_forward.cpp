#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bda/linalg/scalar.hpp"
#include "bda/linear/forward.hpp"
#include "linear/pairs.hpp"
#include "support/error_of.hpp"

using namespace bda_test;
using namespace bda::linear;
using bda::Matrix;
using bda::MatrixView;

namespace {

template <class T>
Matrix<T> matrix(std::mt19937& random, std::int64_t rows, std::int64_t cols) {
  std::normal_distribution<double> normal(0,
                                          1 / std::sqrt(double(std::max<std::int64_t>(rows, 1))));
  Matrix<T> m(rows, cols);
  for (T& x : m.values) x = static_cast<T>(normal(random));
  return m;
}

template <class T>
BasisWeights<T> weights(std::mt19937& random, std::int64_t inputs, std::int64_t outputs,
                        std::int64_t r, bool bias) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(outputs));
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  all.resize(static_cast<std::size_t>(r));
  BasisWeights<T> w{
      {outputs, all}, matrix<T>(random, inputs, r), matrix<T>(random, r, outputs - r), {}};
  if (bias) w.bias = matrix<T>(random, 1, outputs).values;
  return w;
}

/// A value and a bound on the error of computing it in a type of unit roundoff u.
struct Bounded {
  double value = 0, error = 0;
};

/// sum of x w + start: at most count + 1 roundings of every term, and the terms' own errors.
struct Sum {
  double u, value = 0, magnitude = 0, error = 0;
  std::int64_t terms = 0;
  void add(Bounded x, double w) {
    value += x.value * w;
    magnitude += (std::abs(x.value) + x.error) * std::abs(w);
    error += x.error * std::abs(w);
    ++terms;
  }
  [[nodiscard]] Bounded result() const {
    return {value, error + 1.01 * double(terms + 1) * u * magnitude};
  }
};

/// y of one row by the definition, in double.
template <class T>
std::vector<Bounded> oracle(const BasisWeights<T>& w, const bda::compute_t<T>* x) {
  const double u = bda::StorageTraits<bda::compute_t<T>>::unit_roundoff;
  const auto bias = [&](std::int64_t j) {
    return w.bias.empty() ? 0.0 : static_cast<double>(w.bias[std::size_t(j)]);
  };
  std::vector<Bounded> basis, y(std::size_t(w.out_dim()));
  for (std::int64_t j = 0; j < w.rank(); ++j) {
    Sum sum{u};
    for (std::int64_t i = 0; i < w.in_dim(); ++i)
      sum.add({double(x[i]), 0}, static_cast<double>(w.b(i, j)));
    basis.push_back(sum.result());
  }
  const auto place = [&](std::int64_t output, Sum sum) {
    sum.add({bias(output), 0}, 1);
    y[std::size_t(output)] = sum.result();
  };
  for (std::int64_t j = 0; j < w.rank(); ++j) {
    Sum sum{u};
    sum.add(basis[std::size_t(j)], 1);
    place(w.basis[j], sum);
  }
  const auto rest = w.basis.rest();
  for (std::size_t j = 0; j < rest.size(); ++j) {
    Sum sum{u};
    for (std::int64_t i = 0; i < w.rank(); ++i)
      sum.add(basis[std::size_t(i)], static_cast<double>(w.c(i, std::int64_t(j))));
    place(rest[j], sum);
  }
  return y;
}

template <class Layer>
std::vector<typename Layer::Compute> run(const Layer& layer,
                                         const std::vector<typename Layer::Compute>& x,
                                         std::int64_t rows) {
  using C = typename Layer::Compute;
  std::vector<C> out(std::size_t(rows * layer.weights().out_dim()),
                     std::numeric_limits<C>::quiet_NaN());
  std::vector<std::byte> workspace(layer.workspace_size(rows), std::byte{0xff});
  const bda::Status status =
      layer.run(MatrixView<const C>(x.data(), {rows, layer.weights().in_dim()}),
                MatrixView<C>(out.data(), {rows, layer.weights().out_dim()}), workspace);
  REQUIRE(status.ok());
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("A layer runs as y_S = x B, y_rest = y_S C", "[linear]", double, float,
                   Eigen::half, Eigen::bfloat16) {
  using C = bda::compute_t<TestType>;
  std::mt19937 random(1);
  for (int i = 0; i < 40; ++i) {
    const std::int64_t rows = in(random, 1, 30), inputs = in(random, 1, 60);
    const std::int64_t outputs = in(random, 1, 60), r = in(random, 1, outputs);
    const auto w = weights<TestType>(random, inputs, outputs, r, i % 2 == 0);
    const auto x = matrix<C>(random, rows, inputs).values;
    const int threads = static_cast<int>(in(random, 1, 2));
    const auto natural = run(BasisLinear<TestType>(w, OutputOrder::kNatural, threads), x, rows);
    const auto first = run(BasisLinear<TestType>(w, OutputOrder::kBasisFirst, threads), x, rows);
    const auto order = output_order(w);
    std::int64_t wrong = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto y = oracle(w, x.data() + row * inputs);
      for (std::int64_t j = 0; j < outputs; ++j) {
        const auto at = std::size_t(row * outputs + j);
        const auto near = [](double value, const Bounded& b) {
          return std::abs(value - b.value) <= b.error;
        };
        wrong += !near(double(natural[at]), y[std::size_t(j)]);
        wrong += !near(double(first[at]), y[std::size_t(order[std::size_t(j)])]);
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("A next layer takes the outputs as they come", "[linear]") {
  std::mt19937 random(2);
  for (int i = 0; i < 20; ++i) {
    const std::int64_t rows = in(random, 1, 20), inputs = in(random, 1, 30);
    const std::int64_t middle = in(random, 1, 30), outputs = in(random, 1, 30);
    const auto first = weights<double>(random, inputs, middle, in(random, 1, middle), true);
    const auto second = weights<double>(random, middle, outputs, in(random, 1, outputs), true);
    const auto x = matrix<double>(random, rows, inputs).values;
    const auto plain =
        run(BasisLinear<double>(second), run(BasisLinear<double>(first), x, rows), rows);
    const auto folded =
        run(BasisLinear<double>(with_inputs_in(second, output_order(first))),
            run(BasisLinear<double>(first, OutputOrder::kBasisFirst), x, rows), rows);
    // the same terms in another order, of sums of at most 30 terms twice
    for (std::size_t j = 0; j < plain.size(); ++j)
      CHECK(std::abs(plain[j] - folded[j]) <= 1e-13 * double(middle + outputs));

    const FactorWeights<double> pair{
        matrix<double>(random, middle, 3), matrix<double>(random, 3, 7), {}};
    const auto pair_plain =
        run(FactorLinear<double>(pair), run(BasisLinear<double>(first), x, rows), rows);
    const auto pair_folded =
        run(FactorLinear<double>(with_inputs_in(pair, output_order(first))),
            run(BasisLinear<double>(first, OutputOrder::kBasisFirst), x, rows), rows);
    for (std::size_t j = 0; j < pair_plain.size(); ++j)
      CHECK(std::abs(pair_plain[j] - pair_folded[j]) <= 1e-13 * double(middle + outputs));
  }
}

TEST_CASE("A factor pair runs as (x left) right + bias", "[linear]") {
  std::mt19937 random(3);
  for (int i = 0; i < 20; ++i) {
    const std::int64_t rows = in(random, 1, 20), inputs = in(random, 1, 30), r = in(random, 1, 9);
    const std::int64_t outputs = in(random, 1, 30);
    FactorWeights<double> w{
        matrix<double>(random, inputs, r), matrix<double>(random, r, outputs), {}};
    w.bias = matrix<double>(random, 1, outputs).values;
    const auto x = matrix<double>(random, rows, inputs);
    const auto y = run(FactorLinear<double>(w), x.values, rows);
    Eigen::MatrixXd exact =
        bda::linalg::map(x) * bda::linalg::map(w.left) * bda::linalg::map(w.right);
    exact.rowwise() += Eigen::Map<const Eigen::RowVectorXd>(w.bias.data(), outputs);
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t j = 0; j < outputs; ++j)
        CHECK(std::abs(y[std::size_t(row * outputs + j)] - exact(row, j)) <=
              1e-13 * double(inputs + r));
  }
}

TEST_CASE("Weights that contradict each other are refused", "[linear]") {
  std::mt19937 random(4);
  const auto good = weights<float>(random, 5, 7, 3, true);
  const auto message = [](const auto& w) -> std::string {
    return error_of([&] { validate(w); }).what();
  };
  auto bad = good;
  bad.b = Matrix<float>(5, 2);
  CHECK(message(bad) == "b.cols: expected 3 (basis.size), got 2");
  bad = good;
  bad.c = Matrix<float>(2, 4);
  CHECK(message(bad) == "c.rows: expected 3 (basis.size), got 2");
  bad = good;
  bad.c = Matrix<float>(3, 5);
  CHECK(message(bad) == "c.cols: expected 4 (basis.dim - basis.size), got 5");
  bad = good;
  bad.bias.pop_back();
  CHECK(message(bad) == "bias.size: expected 7 (outputs), got 6");
  bad.basis = bda::IndexSet::slice(7, 0, 0);
  CHECK(message(bad) == "basis.size: expected at least 1, got 0");
  CHECK(message(FactorWeights<float>{Matrix<float>(4, 2), Matrix<float>(3, 4), {}}) ==
        "right.rows: expected 2 (left.cols), got 3");
  CHECK(message(FactorWeights<float>{Matrix<float>(4, 0), Matrix<float>(0, 4), {}}) ==
        "left.cols: expected at least 1, got 0");
  CHECK(message(FactorWeights<float>{Matrix<float>(4, 2), Matrix<float>(2, 4), {1, 2}}) ==
        "bias.size: expected 4 (outputs), got 2");
  CHECK(std::string(error_of([&] {
                      return BasisLinear<float>(good, OutputOrder::kNatural, 0);
                    }).what()) == "threads: expected at least 1, got 0");
  CHECK(std::string(error_of([&] {
                      return permuted_rows(good.b, {0, 1});
                    }).what()) == "order.size: expected 5 (rows), got 2");
  CHECK(std::string(error_of([&] {
                      return permuted_rows(good.b, {0, 1, 2, 3, 3});
                    }).what()) ==
        "IndexSet.indices: expected distinct channels, got channel 3 twice");
}

TEST_CASE("Operands that do not fit are refused", "[linear]") {
  std::mt19937 random(5);
  const BasisLinear<float> layer(weights<float>(random, 5, 7, 3, false));
  std::vector<float> memory(100);
  std::vector<std::byte> workspace(layer.workspace_size(4));
  using In = MatrixView<const float>;
  using Out = MatrixView<float>;
  const In x(memory.data(), {4, 5});
  const Out out(memory.data() + 50, {4, 7});
  const auto message = [&](const In& a, const Out& b) {
    return layer.run(a, b, workspace).message();
  };
  CHECK(message(x, out) == "ok");
  CHECK(message(In(nullptr, {4, 5}), out) == "x.data: expected a pointer, not null = 1, got 0");
  CHECK(message(x, Out(nullptr, {4, 7})) == "out.data: expected a pointer, not null = 1, got 0");
  CHECK(message(In(memory.data(), {0, 5}), out) == "x.extent(0): expected at least = 1, got 0");
  CHECK(message(In(memory.data(), {4, 6}), out) ==
        "x.extent(1): expected equal to in_dim = 5, got 6");
  CHECK(message(x, Out(memory.data(), {3, 7})) ==
        "out.extent(0): expected equal to x.extent(0) = 4, got 3");
  CHECK(message(x, Out(memory.data(), {4, 6})) ==
        "out.extent(1): expected equal to out_dim = 7, got 6");
  CHECK(message(In(memory.data(), {4, 5}, {10, 2}), out) ==
        "x.stride(1): expected contiguous = 1, got 2");
  CHECK(message(x, Out(memory.data(), {4, 7}, {14, 2})) ==
        "out.stride(1): expected contiguous = 1, got 2");
  const bda::Status small = layer.run(x, out, std::span(workspace).first(workspace.size() - 1));
  CHECK(small.code() == bda::Status::Code::kWorkspaceTooSmall);
}

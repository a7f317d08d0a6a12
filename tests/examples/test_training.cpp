#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "../../examples/training/adam.hpp"
#include "../../examples/training/task.hpp"

using namespace training_example;

namespace {

constexpr SortingTask kTask{.symbols = 5, .length = 4};

Weights<double> small_model(bool basis_decomposed) {
  std::mt19937 random(1);
  ModelShape shape{.vocab = kTask.vocab(), .tokens = kTask.tokens(), .dim = 8, .heads = 2};
  shape.hidden = 10;
  shape.basis_decomposed = basis_decomposed;
  return initial_weights<double>(shape, random);
}

Weights<double> zeros(Weights<double> w) {
  w.for_each([](double* values, std::int64_t count) { std::fill_n(values, count, 0.0); });
  return w;
}

}  // namespace

TEST_CASE("The sorting task's answers are sorted") {
  std::mt19937 random(2);
  const auto batch = make_batch(kTask, 20, random);
  REQUIRE(batch.size() == 20 * 9);
  for (std::size_t s = 0; s < 20; ++s) {
    const auto* row = batch.data() + s * 9;
    CHECK(row[4] == kTask.separator());
    CHECK(std::is_sorted(row + 5, row + 9));
    CHECK(std::multiset<std::int64_t>(row, row + 4) ==
          std::multiset<std::int64_t>(row + 5, row + 9));
  }
}

TEST_CASE("The model's gradients are finite differences") {
  for (const bool basis_decomposed : {false, true}) {
    Weights<double> w = small_model(basis_decomposed), g = zeros(w);
    CHECK(w.layers[0].attention.k.decomposed() == basis_decomposed);
    std::mt19937 random(3);
    const auto batch = make_batch(kTask, 3, random);
    const auto loss = [&] {
      return evaluate<double>(w, batch, kTask.tokens(), kTask.first_answer(), nullptr).mean;
    };
    evaluate(w, batch, kTask.tokens(), kTask.first_answer(), &g);
    std::vector<double> gradients;
    g.for_each([&](double* values, std::int64_t count) {
      gradients.insert(gradients.end(), values, values + count);
    });
    std::size_t first = 0;
    w.for_each([&](double* values, std::int64_t count) {
      for (int probe = 0; probe < 5; ++probe) {
        const auto at = std::uniform_int_distribution<std::int64_t>(0, count - 1)(random);
        const double value = values[at], h = 0x1p-17;
        values[at] = value + h;
        const double above = loss();
        values[at] = value - h;
        const double expected = (above - loss()) / (2 * h);
        values[at] = value;
        // h^2 f''' / 6 and 2^-53 / h: 1e-10 where f''' is of the order of 10
        CHECK(std::abs(gradients[first + std::size_t(at)] - expected) <=
              1e-8 * (1 + std::abs(expected)));
      }
      first += std::size_t(count);
    });
  }
}

TEST_CASE("Both kinds of model learn") {
  for (const bool basis_decomposed : {false, true}) {
    Weights<double> w = small_model(basis_decomposed), g = zeros(w);
    Adam<double> adam(w.size());
    std::mt19937 random(4);
    double first = 0, last = 0;
    for (int step = 0; step < 150; ++step) {
      const auto batch = make_batch(kTask, 8, random);
      last = evaluate(w, batch, kTask.tokens(), kTask.first_answer(), &g).mean;
      if (step == 0) first = last;
      adam.step(w, g, 1e-2);
    }
    CHECK(first > 1.5);  // near log 6 at best
    CHECK(last < 0.6 * first);
  }
}

TEST_CASE("A basis-decomposed model has the smaller keys and values") {
  Weights<double> plain = small_model(false), bd = small_model(true);
  CHECK(plain.size() - bd.size() == 2 * 2 * 4 * 8);  // layers, K and V, r rows of d
}

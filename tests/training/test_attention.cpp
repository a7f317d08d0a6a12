#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/random_layer.hpp"
#include "bda/attention/bd_attention.hpp"
#include "bda/cpu/backend.hpp"
#include "bda/training/attention.hpp"
#include "support/error_of.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT
using training::Rows;

namespace {

/// A random layer and operands for it, in double.
struct Problem {
  AttentionWeights<double> weights;
  std::int64_t batch, queries, keys;
  std::vector<double> x, context, bias, out;
  std::vector<std::int64_t> lengths;
  bool cross;
  AttentionMask<double> mask;

  explicit Problem(Random& random) {
    const LayerTraits traits = random_traits(random);
    weights = random_layer<double>(random, traits);
    cross = traits.cross;
    batch = random.in(1, 3);
    queries = random.in(1, 7);
    keys = cross ? random.in(1, 7) : queries;
    x = random.vector<double>(batch * queries * weights.hidden_dim());
    if (cross) context = random.vector<double>(batch * keys * weights.context_dim());
    mask.causal = random.coin();
    mask.window = random.coin() ? random.in(1, 4) : 0;
    if (random.coin()) {
      for (std::int64_t b = 0; b < batch; ++b) lengths.push_back(random.in(0, keys));
      mask.key_lengths = lengths.data();
    }
    if (random.coin()) {
      bias = random.vector<double>(weights.config.heads * queries * keys);
      mask.bias = {bias.data(), {weights.config.heads, queries, keys}};
    }
    out.assign(std::size_t(batch * queries * weights.config.out_dim),
               std::numeric_limits<double>::quiet_NaN());
  }
  Problem(const Problem&) = delete;

  [[nodiscard]] AttentionArguments<double> arguments() {
    AttentionArguments<double> args;
    args.x = {x.data(), {batch, queries, weights.hidden_dim()}};
    if (cross) args.context = {context.data(), {batch, keys, weights.context_dim()}};
    args.out = {out.data(), {batch, queries, weights.config.out_dim}};
    args.mask = mask;
    return args;
  }
};

/// Central difference of sum(out o g) in `value`. At h = 2^-17 the error is h^2 f''' / 6, some
/// 1e-11 f''', and rounding's, 2^-53 2^17 = 1e-11 of f times the condition of the layer.
double difference(Problem& p, const std::vector<double>& g, double& value) {
  const auto loss = [&] {
    training::AttentionTraining<double>(p.weights).forward(p.arguments());
    double sum = 0;
    for (std::size_t i = 0; i < g.size(); ++i) sum += g[i] * p.out[i];
    return sum;
  };
  const double at = value, h = 0x1p-17;
  value = at + h;
  const double above = loss();
  value = at - h;
  const double below = loss();
  value = at;
  return (above - below) / (2 * h);
}

}  // namespace

TEST_CASE("The forward pass is BDAttention's", "[training]") {
  Random random(1);
  for (int i = 0; i < 150; ++i) {
    Problem p(random);
    training::AttentionTraining<double>(p.weights).forward(p.arguments());
    const std::vector<double> out = p.out;
    const BDAttention<CpuBackend<double>> attention(p.weights);
    std::vector<std::byte> workspace(attention.workspace_size(p.arguments()));
    REQUIRE(attention.run(p.arguments(), workspace).ok());
    double largest = 1, error = 0;
    for (std::size_t j = 0; j < out.size(); ++j) {
      largest = std::max(largest, std::abs(out[j]));
      error = std::max(error, std::abs(out[j] - p.out[j]));
    }
    // the same function summed in another order: some hundred roundings, sums of at most 30 terms
    CHECK(error <= 1e-12 * largest);
  }
}

TEST_CASE("Gradients of every kind of layer are finite differences", "[training]") {
  Random random(2);
  bool seen_basis = false, seen_latent = false, seen_cross = false, seen_sink = false;
  for (int i = 0; i < 120; ++i) {
    Problem p(random);
    const std::vector<double> g =
        random.vector<double>(p.batch * p.queries * p.weights.config.out_dim);
    training::AttentionTraining<double> layer(p.weights);
    layer.forward(p.arguments());
    const auto found = layer.backward(
        Eigen::Map<const Rows<double>>(g.data(), p.batch * p.queries, p.weights.config.out_dim));
    seen_basis = seen_basis || p.weights.k.decomposed();
    seen_latent = seen_latent || p.weights.latent;
    seen_cross = seen_cross || p.cross;
    seen_sink = seen_sink || !p.weights.sinks.empty();

    const auto compare = [&](std::string_view name, double* values, const double* gradient,
                             std::int64_t count) {
      for (int probe = 0; probe < 4 && count > 0; ++probe) {
        const std::int64_t at = random.in(0, count - 1);
        const double expected = difference(p, g, values[at]);
        CAPTURE(i, name, at, expected, gradient[at]);
        CHECK(std::abs(gradient[at] - expected) <= 1e-7 * (1 + std::abs(expected)));
      }
    };
    std::vector<std::pair<double*, std::int64_t>> tensors;
    std::vector<std::string> names;
    p.weights.for_each_tensor([&](std::string_view name, const double* values, std::int64_t count) {
      names.emplace_back(name);
      tensors.emplace_back(const_cast<double*>(values), count);
    });
    std::size_t t = 0;
    found.weights.for_each_tensor([&](std::string_view, const double* values, std::int64_t count) {
      REQUIRE(tensors[t].second == count);
      compare(names[t], tensors[t].first, values, count);
      ++t;
    });
    compare("x", p.x.data(), found.x.data(), std::int64_t(p.x.size()));
    compare("context", p.context.data(), found.context.data(), std::int64_t(p.context.size()));
    compare("bias", p.bias.data(), found.mask_bias.data(), std::int64_t(p.bias.size()));
    compare("sinks", p.weights.sinks.data(), found.weights.sinks.data(),
            std::int64_t(p.weights.sinks.size()));
  }
  CHECK((seen_basis && seen_latent && seen_cross && seen_sink));
}

TEST_CASE("A projection's gradients are those of the paper", "[training]") {
  Random random(3);
  for (int i = 0; i < 60; ++i) {
    const std::int64_t heads = random.in(1, 4), width = random.in(1, 6);
    const std::int64_t dim = width + random.in(0, 9), tokens = random.in(1, 6);
    auto p = random_projection<double>(random, static_cast<BasisKind>(random.in(0, 2)),
                                       random.coin(), dim, heads, width);
    Rows<double> c = linalg::map(random.matrix<double>(tokens, dim));
    const Rows<double> dy = linalg::map(random.matrix<double>(tokens, heads * width));
    auto gradient = p;
    std::fill(gradient.weight.values.begin(), gradient.weight.values.end(), 0.0);
    std::fill(gradient.bias.begin(), gradient.bias.end(), 0.0);
    Rows<double> dc = Rows<double>::Zero(tokens, dim);
    training::projection_backward(p, c, dy, gradient, dc);
    // The loss is linear in each operand: a difference of any size is exact but for rounding.
    const auto slope = [&](double& value) {
      const double at = value;
      value = at + 1;
      const double above = training::projection_forward(p, c).cwiseProduct(dy).sum();
      value = at - 1;
      const double below = training::projection_forward(p, c).cwiseProduct(dy).sum();
      value = at;
      return (above - below) / 2;
    };
    for (std::int64_t j = 0; j < p.weight.size(); ++j)
      CHECK(std::abs(slope(p.weight.values[std::size_t(j)]) -
                     gradient.weight.values[std::size_t(j)]) <= 1e-12);
    for (std::size_t j = 0; j < p.bias.size(); ++j)
      CHECK(std::abs(slope(p.bias[j]) - gradient.bias[j]) <= 1e-12);
    for (Eigen::Index j = 0; j < c.size(); ++j)
      CHECK(std::abs(slope(c.data()[j]) - dc.data()[j]) <= 1e-12);
  }
}

TEST_CASE("Training refuses what inference refuses", "[training]") {
  Random random(4);
  Problem p(random);
  training::AttentionTraining<double> layer(p.weights);
  auto args = p.arguments();
  args.out.data = nullptr;
  CHECK(bda_test::error_of([&] { layer.forward(args); }).name() == "out.data");
  layer.forward(p.arguments());
  const std::int64_t rows = p.batch * p.queries, cols = p.weights.config.out_dim;
  const auto message = [&](std::int64_t r, std::int64_t c) -> std::string {
    return bda_test::error_of([&] { static_cast<void>(layer.backward(Rows<double>::Zero(r, c))); })
        .what();
  };
  CHECK(message(rows + 1, cols) == "out_gradient.rows: expected " + std::to_string(rows) +
                                       " (batch * queries), got " + std::to_string(rows + 1));
  CHECK(message(rows, cols + 1) == "out_gradient.cols: expected " + std::to_string(cols) +
                                       " (out_dim), got " + std::to_string(cols + 1));
  AttentionWeights<double> bad = p.weights;
  bad.o_bias.resize(std::size_t(cols + 1));
  CHECK(bda_test::error_of([&] { training::AttentionTraining<double>{bad}; }).name() ==
        "o_bias.size");
}

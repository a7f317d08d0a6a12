#include <Eigen/LU>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <utility>

#include "attention/problem.hpp"
#include "bda/attention/bd_attention.hpp"
#include "bda/cpu/backend.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

namespace {

template <class T>
bool needs_context(const AttentionWeights<T>& w) {
  return w.hidden_dim() != w.context_dim();
}

}  // namespace

TEMPLATE_TEST_CASE("attention equals its definition, whatever the layer", "", double, float,
                   Eigen::half, Eigen::bfloat16) {
  using C = compute_t<TestType>;
  for (std::uint32_t seed = 0; seed < 150; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const LayerTraits traits = random_traits(random);
    const auto weights = random_layer<TestType>(random, traits);
    const CpuOptions options{.threads = 1, .query_block = random.in(1, 8)};
    const BDAttention<CpuBackend<TestType>> attention(weights, options);
    Problem<C> problem(random, weights, traits.cross || needs_context(weights));
    REQUIRE(run(attention, problem.arguments()).ok());
    check_within_bounds(problem.out, problem.expected(Oracle<TestType>(weights)), kMeaningful<C>);
  }
}

TEMPLATE_TEST_CASE("absorbed MLA equals its definition", "", double, float, Eigen::half,
                   Eigen::bfloat16) {
  using C = compute_t<TestType>;
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    LayerTraits traits = random_traits(random);
    traits.latent = true;
    traits.cross = traits.head_norms = false;
    const auto weights = random_layer<TestType>(random, traits);
    const CpuOptions options{.threads = 1, .query_block = random.in(1, 8)};
    const BDAttention<CpuBackend<TestType>> attention(weights, options);
    Problem<C> problem(random, weights, false);
    auto args = problem.arguments();
    args.latent_products = LatentProducts::kAbsorbed;
    REQUIRE(run(attention, args).ok());
    check_within_bounds(problem.out, problem.expected(Oracle<TestType>(weights, 0, true)),
                        kMeaningful<C>);
  }
}

namespace {

using Dense = linalg::RowMatrix<double>;

/// Makes head g's rows at S a well-conditioned R = I + E, |E| = 1/4 by Frobenius: cond(R) <= 5/3.
void condition(Random& random, KvProjection<double>& p, const IndexSet& basis, std::int64_t g) {
  const std::int64_t r = basis.size();
  const Matrix<double> noise = random.matrix<double>(r, r);
  const Dense square =
      Dense::Identity(r, r) + linalg::map(noise) * (0.25 / linalg::map(noise).norm());
  for (std::int64_t i = 0; i < r; ++i)
    linalg::map(p.weight).block(basis[i], g * r, 1, r) = square.row(i);
}

Dense basis_rows(const KvProjection<double>& p, const IndexSet& basis, std::int64_t g) {
  const std::int64_t r = basis.size();
  Dense square(r, r);
  for (std::int64_t i = 0; i < r; ++i)
    square.row(i) = linalg::map(p.weight).block(basis[i], g * r, 1, r);
  return square;
}

/// C_g = W_g[rest, :] R_g^-1 and b_g R_g^-1 in place of W_g and b_g, by a direct solve.
KvProjection<double> decompose(const KvProjection<double>& p, const IndexSet& basis,
                               std::int64_t heads) {
  const std::int64_t r = basis.size();
  const std::vector<std::int64_t> rest = basis.rest();
  KvProjection<double> out = p;
  out.basis = basis;
  out.weight = Matrix<double>(basis.dim() - r, heads * r);
  for (std::int64_t g = 0; g < heads; ++g) {
    const Dense inverse = basis_rows(p, basis, g).inverse();
    for (std::int64_t i = 0; i < out.weight.rows; ++i)
      linalg::map(out.weight).block(i, g * r, 1, r) =
          linalg::map(p.weight).block(rest[static_cast<std::size_t>(i)], g * r, 1, r) * inverse;
    if (p.bias.empty()) continue;
    const Eigen::Map<const Dense> bias(p.bias.data() + g * r, 1, r);
    Eigen::Map<Dense>(out.bias.data() + g * r, 1, r) = bias * inverse;
  }
  return out;
}

IndexSet any_basis(Random& random, std::int64_t dim, std::int64_t size) {
  return random_basis(random, random.coin() ? BasisKind::kSlice : BasisKind::kScattered, dim, size);
}

}  // namespace

TEST_CASE("basis decomposition does not change what a layer computes") {
  // All in double and cond(R) <= 5/3, so what is left is rounding: the bounds of both forms, and of
  // the solve, about r^2 cond(R) u relative in the new weights: below 1e-12 in outputs of size 1.
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    LayerTraits traits = random_traits(random);
    traits.k_basis = traits.v_basis = traits.rope_basis = BasisKind::kNone;
    traits.head_norms = false;
    auto original = random_layer<double>(random, traits);
    const AttentionConfig& c = original.config;
    const IndexSet k_basis = any_basis(random, c.kv_dim, c.qk_dim);
    const IndexSet v_basis = any_basis(random, c.kv_dim, c.v_dim);
    for (std::int64_t g = 0; g < c.kv_heads; ++g) {
      if (c.qk_dim > 0) condition(random, original.k, k_basis, g);
      condition(random, original.v, v_basis, g);
    }

    auto decomposed = original;
    if (c.qk_dim > 0) decomposed.k = decompose(original.k, k_basis, c.kv_heads);
    decomposed.v = decompose(original.v, v_basis, c.kv_heads);
    for (std::int64_t h = 0; h < c.heads; ++h) {
      const std::int64_t g = h / c.group_size(), first = h * c.head_dim();
      if (c.qk_dim > 0) {
        const Dense turn = basis_rows(original.k, k_basis, g).transpose();
        auto q = linalg::map(decomposed.q).middleCols(first, c.qk_dim);
        q = (q * turn).eval();
        if (!original.q_bias.empty()) {
          Eigen::Map<Dense> bias(decomposed.q_bias.data() + first, 1, c.qk_dim);
          bias = (bias * turn).eval();
        }
      }
      auto o = linalg::map(decomposed.o).middleRows(h * c.v_dim, c.v_dim);
      o = (basis_rows(original.v, v_basis, g) * o).eval();
    }

    const BDAttention<CpuBackend<double>> attention(decomposed);
    Problem<double> problem(random, original, traits.cross || needs_context(original));
    REQUIRE(run(attention, problem.arguments()).ok());
    auto expected = problem.expected(Oracle<double>(original));
    const auto own = problem.expected(Oracle<double>(decomposed));
    for (std::size_t b = 0; b < expected.size(); ++b)
      for (std::size_t t = 0; t < expected[b].size(); ++t)
        for (std::size_t i = 0; i < expected[b][t].size(); ++i)
          expected[b][t][i].error += own[b][t][i].error + 1e-12;
    check_within_bounds(problem.out, expected, kMeaningful<double>);
  }
}

TEST_CASE("the number of threads does not change a bit of the result") {
  for (std::uint32_t seed = 0; seed < 6; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    AttentionWeights<float> w;
    AttentionConfig& c = w.config;
    c.query_dim = c.kv_dim = c.out_dim = 96;
    c.heads = 6;
    c.kv_heads = 3;
    c.qk_dim = c.v_dim = 48;
    c.scale = 0.2;
    w.q = random.matrix<float>(96, 6 * 48);
    w.k = random_projection<float>(random, BasisKind::kScattered, true, 96, 3, 48);
    w.v = random_projection<float>(random, BasisKind::kSlice, false, 96, 3, 48);
    w.o = random.matrix<float>(6 * 48, 96);
    w.latent.emplace();
    w.latent->kv_a = random.matrix<float>(96, 96);
    w.latent->kv_norm = random.vector<float>(96, 1, 0.2);
    const std::int64_t tokens = seed < 2 ? 3 : 150;
    Activations<float> x(random, 2, tokens, 96);
    std::vector<std::vector<float>> results;
    for (int threads : {1, 2, 5}) {
      const BDAttention<CpuBackend<float>> attention(w, {.threads = threads, .query_block = 32});
      Activations<float> out(2, tokens, 96);
      AttentionArguments<float> args{.x = x.view(), .out = out.view()};
      if (seed % 2 == 1) args.latent_products = LatentProducts::kAbsorbed;
      REQUIRE(run(attention, args).ok());
      CHECK(out.values_that_are_numbers() == 2 * tokens * 96);
      results.emplace_back();
      for (float f : out.values())
        if (!std::isnan(f)) results.back().push_back(f);
    }
    CHECK(results[0] == results[1]);
    CHECK(results[0] == results[2]);
  }
}

TEST_CASE("a query that sees no key gives the output bias") {
  Random random(1);
  const auto weights = random_layer<float>(random, {.biases = true, .softcap = true});
  const BDAttention<CpuBackend<float>> attention(weights);
  Activations<float> x(random, 2, 4, weights.hidden_dim()), out(2, 4, weights.config.out_dim);
  const std::int64_t lengths[] = {0, 2};
  AttentionArguments<float> args{.x = x.view(), .out = out.view()};
  args.mask = {.window = 1, .key_lengths = lengths};
  REQUIRE(run(attention, args).ok());
  for (std::int64_t t = 0; t < 4; ++t) {
    for (std::int64_t i = 0; i < weights.config.out_dim; ++i) {
      const float bias = weights.o_bias[static_cast<std::size_t>(i)];
      CHECK(out.view()(0, t, i) == bias);
      CHECK((out.view()(1, t, i) == bias) == (t >= 2));
    }
  }
}

TEST_CASE("the output may take the place of the input") {
  Random random(2);
  auto weights = random_layer<double>(random, {.nope = true, .rope = true});
  weights.o = random.matrix<double>(weights.o.rows, weights.hidden_dim());
  weights.config.out_dim = weights.hidden_dim();
  const BDAttention<CpuBackend<double>> attention(weights);
  Activations<double> x(random, 2, 9, weights.hidden_dim()), out(2, 9, weights.hidden_dim());
  REQUIRE(run(attention, {.x = x.view(), .out = out.view()}).ok());
  REQUIRE(run(attention, {.x = x.view(), .out = x.view()}).ok());
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t t = 0; t < 9; ++t)
      for (std::int64_t i = 0; i < weights.hidden_dim(); ++i)
        CHECK(x.view()(b, t, i) == out.view()(b, t, i));
}

TEST_CASE("weights that do not fit their config are refused") {
  Random random(3);
  auto weights = random_layer<float>(random, {});
  weights.o.cols += 1;
  const auto cols = std::to_string(weights.o.cols);
  try {
    const BDAttention<CpuBackend<float>> attention(weights);
    FAIL("not refused");
  } catch (const Error& e) {
    CHECK(e.name() == "o.cols");
    CHECK(e.given() == cols);
  }
}

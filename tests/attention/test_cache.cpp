#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <utility>

#include "attention/problem.hpp"
#include "bda/attention/bd_attention.hpp"
#include "bda/cpu/backend.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

namespace {

/// Every form of cache, with T stored weights and a cache of CacheScalar.
template <class T, class CacheScalar>
void check_caches(double meaningful) {
  using C = compute_t<T>;
  const double roundoff = StorageTraits<CacheScalar>::unit_roundoff;
  const double cache_roundoff = std::is_same_v<C, CacheScalar> ? 0 : roundoff;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    LayerTraits traits = random_traits(random);
    traits.cross = false;
    if (traits.latent) traits.head_norms = false;
    const auto weights = random_layer<T>(random, traits);
    const BDAttention<CpuBackend<T, CacheScalar>> attention(weights, {.query_block = 3});
    Problem<C> problem(random, weights, false);
    problem.mask.causal = true;  // so that no query waits for a later chunk
    const auto expected = problem.expected(Oracle<T>(weights, cache_roundoff));
    const auto decode = [&](CacheForm form, LatentProducts products) {
      auto cache = attention.make_cache(problem.batch, problem.queries + random.in(0, 2), form);
      run_in_chunks(random, attention, problem, cache, products);
    };
    decode(CacheForm::kMaterialized, LatentProducts::kMaterialized);
    check_within_bounds(problem.out, expected, meaningful);
    if (!traits.latent) continue;
    problem.out = Activations<C>(problem.batch, problem.queries, weights.config.out_dim);
    decode(CacheForm::kLatent, LatentProducts::kMaterialized);
    check_within_bounds(problem.out, expected, meaningful);
    problem.out = Activations<C>(problem.batch, problem.queries, weights.config.out_dim);
    decode(CacheForm::kLatent, LatentProducts::kAbsorbed);
    check_within_bounds(problem.out, problem.expected(Oracle<T>(weights, cache_roundoff, true)),
                        meaningful);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("decoding with a cache equals the whole sequence", "", double, float,
                   Eigen::half, Eigen::bfloat16) {
  using C = compute_t<TestType>;
  check_caches<TestType, C>(kMeaningful<C>);
}

TEST_CASE("a 16-bit cache rounds what it holds, and nothing else") {
  // Keys, values and latents of size about 1 are off by their roundoff u, logits by about
  // sqrt(width) u, outputs by a few times that; the bound sums absolute values, tenfold of it.
  check_caches<float, Eigen::half>(200 * StorageTraits<Eigen::half>::unit_roundoff);
  check_caches<float, Eigen::bfloat16>(200 * StorageTraits<Eigen::bfloat16>::unit_roundoff);
}

TEST_CASE("cross-attention reads its context once") {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const auto weights = random_layer<float>(
        random, {.cross = true, .biases = seed % 2 == 0, .k_basis = BasisKind::kSlice});
    const BDAttention<CpuBackend<float>> attention(weights);
    Problem<float> problem(random, weights, true);
    problem.mask = {.causal = false};
    const auto expected = problem.expected(Oracle<float>(weights));
    auto cache = attention.make_cache(problem.batch, problem.keys);
    for (std::int64_t t = 0; t < problem.queries; ++t) {
      AttentionArguments<float> args = problem.arguments();
      args.x = problem.x.view(t, 1);
      args.out = problem.out.view(t, 1);
      if (t > 0) args.context.extents[1] = 0;
      REQUIRE(run(attention, args, cache).ok());
      REQUIRE(cache.length() == problem.keys);
    }
    check_within_bounds(problem.out, expected, kMeaningful<float>);
  }
}

TEST_CASE("a truncated cache goes on from where it was cut") {
  Random random(4);
  const auto weights = random_layer<float>(random, {.rope = true});
  const BDAttention<CpuBackend<float>> attention(weights);
  Activations<float> x(random, 1, 6, weights.hidden_dim());
  const auto decode = [&](auto& cache, std::int64_t first, std::int64_t count) {
    Activations<float> out(1, 6, weights.config.out_dim);
    REQUIRE(run(attention, {.x = x.view(first, count), .out = out.view(first, count)}, cache).ok());
    return std::vector<float>(&out.view()(0, first, 0),
                              &out.view()(0, first, 0) + weights.config.out_dim);
  };
  auto cache = attention.make_cache(1, 6);
  decode(cache, 0, 3);
  const auto expected = decode(cache, 3, 1);
  decode(cache, 4, 2);
  cache.truncate(3);
  CHECK(decode(cache, 3, 1) == expected);
  CHECK_THROWS_AS(cache.truncate(5), Error);
  CHECK_THROWS_AS(cache.truncate(-1), Error);
}

TEST_CASE("a cache stays with its layer when the layer is moved") {
  Random random(5);
  const auto weights = random_layer<float>(random, {});
  BDAttention<CpuBackend<float>> attention(weights);
  auto cache = attention.make_cache(1, 4);
  const BDAttention<CpuBackend<float>> moved = std::move(attention);
  Activations<float> x(random, 1, 4, weights.hidden_dim()), out(1, 4, weights.config.out_dim);
  CHECK(run(moved, {.x = x.view(), .out = out.view()}, cache).ok());
}

TEST_CASE("caches that cannot be are refused") {
  Random random(6);
  const BDAttention<CpuBackend<float>> plain(random_layer<float>(random, {}));
  CHECK_THROWS_AS(plain.make_cache(1, 4, CacheForm::kLatent), Error);
  CHECK_THROWS_AS(plain.make_cache(0, 4), Error);
  CHECK_THROWS_AS(plain.make_cache(1, 0), Error);
  const BDAttention<CpuBackend<float>> normed(
      random_layer<float>(random, {.latent = true, .head_norms = true}));
  CHECK_THROWS_AS(normed.make_cache(1, 4, CacheForm::kLatent), Error);
  const BDAttention<CpuBackend<float>> latent(
      random_layer<float>(random, {.latent = true, .shared_rope = true, .rope = true}));
  const AttentionConfig& c = latent.config();
  CHECK(latent.make_cache(2, 5, CacheForm::kLatent).bytes() == 2 * 5 * (c.kv_dim + c.rope_dim) * 4);
  CHECK(latent.make_cache(2, 5).bytes() == 2 * 5 * c.kv_heads * (c.head_dim() + c.v_dim) * 4);
}

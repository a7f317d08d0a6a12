// An attention step and a paged cache that the library knows nothing of, behind the template
// parameter of the CPU backend.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <numeric>

#include "attention/problem.hpp"
#include "bda/attention/bd_attention.hpp"
#include "bda/cpu/backend.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

namespace {

/// Pages of three tokens, handed out in random order.
template <class C>
class PagedCache {
 public:
  static constexpr std::int64_t kPage = 3;
  PagedCache(Random& random, const AttentionConfig& c, std::int64_t batch, std::int64_t capacity)
      : batch_(batch),
        pages_((capacity + kPage - 1) / kPage),
        key_row_(c.kv_heads * c.head_dim()),
        value_row_(c.kv_heads * c.v_dim),
        table_(static_cast<std::size_t>(batch * pages_)),
        keys_(table_.size() * static_cast<std::size_t>(kPage * key_row_), kNan),
        values_(table_.size() * static_cast<std::size_t>(kPage * value_row_), kNan) {
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), random.engine());
  }
  [[nodiscard]] std::int64_t batch() const { return batch_; }
  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] std::int64_t capacity() const { return pages_ * kPage; }
  void set_length(std::int64_t length) { length_ = length; }

  C* key(std::int64_t b, std::int64_t t) { return keys_.data() + slot(b, t) * key_row_; }
  C* value(std::int64_t b, std::int64_t t) { return values_.data() + slot(b, t) * value_row_; }

 private:
  static constexpr C kNan = std::numeric_limits<C>::quiet_NaN();
  [[nodiscard]] std::int64_t slot(std::int64_t b, std::int64_t t) const {
    return table_[static_cast<std::size_t>(b * pages_ + t / kPage)] * kPage + t % kPage;
  }
  std::int64_t batch_, pages_, key_row_, value_row_, length_ = 0;
  std::vector<std::int64_t> table_;
  std::vector<C> keys_, values_;
};

/// By the definition, over the pages; or, without a cache, over the keys it is given.
template <class C>
struct PagedAttend {
  using Cache = PagedCache<C>;
  using Arguments = cpu::AttendArguments<C, C>;

  static std::size_t workspace_size(const Arguments& a, const Cache* cache) {
    return static_cast<std::size_t>(a.k.extent(1) + (cache != nullptr ? cache->length() : 0)) *
           sizeof(C);
  }
  static Status run(const Arguments& a, Cache* cache, std::span<std::byte> workspace) {
    const std::int64_t past = cache != nullptr ? cache->length() : 0;
    const std::int64_t keys = past + a.k.extent(1), group = a.q.extent(2) / a.k.extent(2);
    // aligned, as every piece of the backend's workspace is
    C* const weights = reinterpret_cast<C*>(workspace.data());
    for (std::int64_t b = 0; b < a.q.extent(0); ++b) {
      for (std::int64_t t = past; cache != nullptr && t < keys; ++t)
        for (std::int64_t g = 0; g < a.k.extent(2); ++g) {
          std::copy_n(&a.k(b, t - past, g, 0), a.k.extent(3), cache->key(b, t) + g * a.k.extent(3));
          std::copy_n(&a.v(b, t - past, g, 0), a.v.extent(3),
                      cache->value(b, t) + g * a.v.extent(3));
        }
      for (std::int64_t i = 0; i < a.q.extent(1); ++i)
        for (std::int64_t h = 0; h < a.q.extent(2); ++h) {
          const std::int64_t g = h / group;
          const auto key = [&](std::int64_t j) -> const C* {
            return cache != nullptr ? cache->key(b, j) + g * a.k.extent(3) : &a.k(b, j, g, 0);
          };
          const auto value = [&](std::int64_t j) -> const C* {
            return cache != nullptr ? cache->value(b, j) + g * a.v.extent(3) : &a.v(b, j, g, 0);
          };
          one_query(a, b, i, h, keys, key, value, weights);
        }
    }
    return {};
  }

 private:
  template <class Key, class Value>
  static void one_query(const Arguments& a, std::int64_t b, std::int64_t i, std::int64_t h,
                        std::int64_t keys, const Key& key, const Value& value, C* weights) {
    const auto& f = a.score;
    C largest = a.sinks != nullptr ? static_cast<C>(a.sinks[h]) : -std::numeric_limits<C>::max();
    const std::int64_t position = f.first_position + i;
    const auto seen = [&](std::int64_t j) {
      return (!f.mask.causal || j <= position) &&
             (f.mask.window == 0 || position - j < f.mask.window) &&
             (f.mask.key_lengths == nullptr || j < f.mask.key_lengths[b]);
    };
    for (std::int64_t j = 0; j < keys; ++j) {
      if (!seen(j)) continue;
      C s = f.scale * std::inner_product(key(j), key(j) + a.q.extent(3), &a.q(b, i, h, 0), C(0));
      if (f.softcap > 0) s = f.softcap * std::tanh(s / f.softcap);
      if (f.mask.bias.data != nullptr) s += f.mask.bias(h, i, j);
      largest = std::max(largest, weights[j] = s);
    }
    C sum = a.sinks != nullptr ? std::exp(static_cast<C>(a.sinks[h]) - largest) : C(0);
    C* const out = &a.out(b, i, h, 0);
    std::fill_n(out, a.out.extent(3), C(0));
    for (std::int64_t j = 0; j < keys; ++j) {
      if (!seen(j)) continue;
      const C weight = std::exp(weights[j] - largest);
      sum += weight;
      for (std::int64_t r = 0; r < a.out.extent(3); ++r) out[r] += weight * value(j)[r];
    }
    for (std::int64_t r = 0; r < a.out.extent(3) && sum > 0; ++r) out[r] /= sum;
  }
};

template <class T>
using PagedAttention = BDAttention<CpuBackend<T, compute_t<T>, PagedAttend<compute_t<T>>>>;

}  // namespace

TEMPLATE_TEST_CASE("a step with a paged cache of its own decodes every kind of layer", "", double,
                   float, Eigen::bfloat16) {
  using C = compute_t<TestType>;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    LayerTraits traits = random_traits(random);
    traits.cross = false;
    const auto weights = random_layer<TestType>(random, traits);
    const PagedAttention<TestType> attention(weights);
    Problem<C> problem(random, weights, false);
    problem.mask.causal = true;  // so that no query waits for a later chunk
    const auto expected = problem.expected(Oracle<TestType>(weights));
    PagedCache<C> cache(random, weights.config, problem.batch, problem.queries);
    run_in_chunks(random, attention, problem, cache, LatentProducts::kMaterialized);
    check_within_bounds(problem.out, expected, kMeaningful<C>);
  }
}

TEMPLATE_TEST_CASE("the same step without a cache, cross-attention included", "", double, float) {
  using C = compute_t<TestType>;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const LayerTraits traits = random_traits(random);
    const auto weights = random_layer<TestType>(random, traits);
    const PagedAttention<TestType> attention(weights);
    Problem<C> problem(random, weights, traits.cross);
    const auto expected = problem.expected(Oracle<TestType>(weights));
    REQUIRE(run(attention, problem.arguments()).ok());
    check_within_bounds(problem.out, expected, kMeaningful<C>);
  }
}

namespace {

/// Fails once the cache holds something.
struct FailingAttend : PagedAttend<double> {
  static Status run(const Arguments& a, Cache* cache, std::span<std::byte> workspace) {
    if (cache->length() > 0) return Status::invalid("pages", "at least", 1, 0);
    return PagedAttend<double>::run(a, cache, workspace);
  }
};

}  // namespace

TEST_CASE("a step's refusal is the layer's, and the cache is as it was") {
  Random random(1);
  const auto weights = random_layer<double>(random, {.latent = true});
  const BDAttention<CpuBackend<double, double, FailingAttend>> attention(weights);
  PagedCache<double> cache(random, weights.config, 2, 4);  // rounded up to 6 tokens
  Activations<double> x(random, 2, 7, weights.hidden_dim()), out(2, 7, weights.config.out_dim);
  AttentionArguments<double> args;
  const auto tokens = [&](std::int64_t first, std::int64_t count) {
    args.x = x.view(first, count), args.out = out.view(first, count);
  };
  tokens(0, 2);
  REQUIRE(run(attention, args, cache).ok());
  REQUIRE(cache.length() == 2);
  tokens(2, 1);
  CHECK(run(attention, args, cache).message() == "pages: expected at least = 1, got 0");
  CHECK(cache.length() == 2);
  tokens(2, 5);
  CHECK(run(attention, args, cache).message() ==
        "cache.capacity: expected at least the tokens held and the new ones = 7, got 6");
  tokens(2, 1);
  args.latent_products = LatentProducts::kAbsorbed;
  CHECK(run(attention, args, cache).argument() == std::string("latent_products"));
  CHECK(attention.workspace_size(args, cache) == 0);
  PagedCache<double> other(random, weights.config, 1, 4);
  args.latent_products = LatentProducts::kMaterialized;
  CHECK(run(attention, args, other).argument() == std::string("cache.batch"));
}

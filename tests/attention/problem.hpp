#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "attention/oracle.hpp"
#include "attention/random_layer.hpp"
#include "bda/attention/bd_attention.hpp"

namespace bda::testing {

/// A [batch, tokens, width] array with gaps between rows and between sequences. The gaps and, where
/// it is an output, all values are NaN.
template <class C>
class Activations {
 public:
  Activations() = default;
  Activations(std::int64_t batch, std::int64_t tokens, std::int64_t width)
      : batch_(batch),
        tokens_(tokens),
        width_(width),
        row_(width + 3),
        sequence_(tokens * row_ + 5) {
    values_.assign(static_cast<std::size_t>(batch * sequence_ + 1),
                   std::numeric_limits<C>::quiet_NaN());
  }
  Activations(Random& random, std::int64_t batch, std::int64_t tokens, std::int64_t width)
      : Activations(batch, tokens, width) {
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t i = 0; i < width; ++i) view()(b, t, i) = static_cast<C>(random.normal());
  }

  TensorView<C, 3> view() { return view(0, tokens_); }
  /// Tokens [first, first + count).
  TensorView<C, 3> view(std::int64_t first, std::int64_t count) {
    return {values_.data() + first * row_, {batch_, count, width_}, {sequence_, row_, 1}};
  }
  [[nodiscard]] Rows rows(std::int64_t b) {
    Rows out;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      out.emplace_back();
      for (std::int64_t i = 0; i < width_; ++i)
        out.back().push_back(static_cast<double>(view()(b, t, i)));
    }
    return out;
  }
  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  [[nodiscard]] std::int64_t values_that_are_numbers() const {
    std::int64_t n = 0;
    for (C x : values_) n += !std::isnan(x);
    return n;
  }
  [[nodiscard]] const std::vector<C>& values() const { return values_; }

 private:
  std::int64_t batch_ = 0, tokens_ = 0, width_ = 0, row_ = 0, sequence_ = 0;
  std::vector<C> values_;
};

/// One call's operands with everything that is optional decided at random.
template <class C>
struct Problem {
  template <class T>
  Problem(Random& random, const AttentionWeights<T>& w, bool cross)
      : batch(random.in(1, 3)),
        queries(random.in(1, 13)),
        keys(cross ? random.in(1, 13) : queries),
        x(random, batch, queries, w.hidden_dim()),
        out(batch, queries, w.config.out_dim) {
    if (cross) context = Activations<C>(random, batch, keys, w.context_dim());
    mask.causal = random.coin();
    if (random.coin()) mask.window = random.in(1, 6);
    if (random.coin()) {
      for (std::int64_t b = 0; b < batch; ++b) key_lengths.push_back(random.in(0, keys));
      mask.key_lengths = key_lengths.data();
    }
    if (random.coin()) {
      bias = random.vector<C>(w.config.heads * queries * (keys + 2));
      mask.bias = {
          bias.data(), {w.config.heads, queries, keys}, {queries * (keys + 2), keys + 2, 1}};
    }
  }

  AttentionArguments<C> arguments() {
    AttentionArguments<C> args;
    args.x = x.view();
    if (context.tokens() > 0) args.context = context.view();
    args.out = out.view();
    args.mask = mask;
    return args;
  }

  /// The oracle's answer for every sequence.
  template <class T>
  std::vector<Rows> expected(const Oracle<T>& oracle) {
    std::vector<Rows> all;
    for (std::int64_t b = 0; b < batch; ++b)
      all.push_back(
          oracle.run(x.rows(b), context.tokens() > 0 ? context.rows(b) : x.rows(b), mask, b, 0));
    return all;
  }

  std::int64_t batch, queries, keys;
  Activations<C> x, context, out;
  AttentionMask<C> mask;
  std::vector<std::int64_t> key_lengths;
  std::vector<C> bias;
};

/// Every value of `out` within the oracle's bound, which itself must say something: be below
/// `meaningful` on average.
template <class C>
void check_within_bounds(Activations<C>& out, const std::vector<Rows>& expected,
                         double meaningful) {
  std::int64_t wrong = 0, checked = 0;
  double worst = 0, bounds = 0;
  for (std::size_t b = 0; b < expected.size(); ++b) {
    for (std::size_t t = 0; t < expected[b].size(); ++t) {
      for (std::size_t i = 0; i < expected[b][t].size(); ++i, ++checked) {
        const Bounded& e = expected[b][t][i];
        const double difference = std::abs(static_cast<double>(out.view()(b, t, i)) - e.value);
        if (!(difference <= e.error)) ++wrong, worst = std::max(worst, difference);
        bounds += e.error;
      }
    }
  }
  INFO("worst difference outside its bound: " << worst);
  CHECK(wrong == 0);
  CHECK(bounds < meaningful * static_cast<double>(checked));
  CHECK(out.values_that_are_numbers() == checked);  // the gaps between the rows are untouched
}

/// What a bound may be at most for a test to mean something: in units of the compute type's
/// roundoff, a thousandth of float's digits.
template <class C>
constexpr double kMeaningful = 1e5 * StorageTraits<C>::unit_roundoff;

using Workspace = std::vector<std::byte>;

/// Memory of `size` bytes that is not aligned and holds no zeros.
inline std::span<std::byte> unaligned(Workspace& memory, std::size_t size) {
  memory.assign(size + 1, std::byte{0xff});
  return {memory.data() + 1, size};
}

template <class Attention>
Status run(const Attention& attention, const typename Attention::Arguments& args) {
  Workspace memory;
  return attention.run(args, unaligned(memory, attention.workspace_size(args)));
}
template <class Attention>
Status run(const Attention& attention, const typename Attention::Arguments& args,
           typename Attention::Cache& cache) {
  Workspace memory;
  return attention.run(args, cache, unaligned(memory, attention.workspace_size(args, cache)));
}

/// Runs `problem` (self-attention) in chunks of random size against an empty cache.
template <class Attention, class C>
void run_in_chunks(Random& random, const Attention& attention, Problem<C>& problem,
                   typename Attention::Cache& cache, LatentProducts products) {
  for (std::int64_t first = 0; first < problem.queries;) {
    const std::int64_t count = random.in(1, problem.queries - first);
    const std::int64_t keys = first + count;
    AttentionArguments<C> args = problem.arguments();
    args.x = problem.x.view(first, count);
    args.out = problem.out.view(first, count);
    args.latent_products = products;
    std::vector<std::int64_t> lengths = problem.key_lengths;
    for (std::int64_t& n : lengths) n = std::min(n, keys);
    if (!lengths.empty()) args.mask.key_lengths = lengths.data();
    if (args.mask.bias.data != nullptr) {
      args.mask.bias.data = &problem.mask.bias(0, first, 0);
      args.mask.bias.extents = {problem.mask.bias.extent(0), count, keys};
    }
    const Status status = run(attention, args, cache);
    INFO(status.message());
    REQUIRE(status.ok());
    first = keys;
    REQUIRE(cache.length() == first);
  }
}

}  // namespace bda::testing

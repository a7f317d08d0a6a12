#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <string>

#include "attention/problem.hpp"
#include "bda/attention/bd_attention.hpp"
#include "bda/attention/check_arguments.hpp"
#include "bda/cpu/backend.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

namespace {

using Attention = BDAttention<CpuBackend<float>>;
using Arguments = AttentionArguments<float>;

/// A layer with operands that are fine until `spoil` is through with them.
struct Fixture {
  Random random{7};
  AttentionWeights<float> weights;
  Attention attention;
  Activations<float> x, context, out;
  std::vector<std::int64_t> lengths{1, 2};
  std::vector<float> bias;

  explicit Fixture(LayerTraits traits = {})
      : weights(random_layer<float>(random, traits)),
        attention(weights),
        x(random, 2, 3, weights.hidden_dim()),
        context(random, 2, 5, weights.context_dim()),
        out(2, 3, weights.config.out_dim),
        bias(static_cast<std::size_t>(weights.config.heads * 3 * 3)) {}

  Arguments arguments() {
    Arguments args{.x = x.view(), .out = out.view()};
    args.mask.key_lengths = lengths.data();
    args.mask.bias = {bias.data(), {weights.config.heads, 3, 3}};
    return args;
  }

  void refuses(const std::function<void(Arguments&)>& spoil, const std::string& argument,
               std::int64_t expected, std::int64_t given) {
    Arguments args = arguments();
    spoil(args);
    auto cache = attention.make_cache(2, 8);
    Workspace memory(1 << 20);
    for (const Status& s : {attention.run(args, memory), attention.run(args, cache, memory)}) {
      INFO(s.message());
      CHECK_FALSE(s.ok());
      CHECK(s.argument() == argument);
      CHECK(s.expected() == expected);
      CHECK(s.given() == given);
      CHECK(s.message().find(std::to_string(given)) != std::string::npos);
    }
    CHECK(attention.workspace_size(args) == 0);
    CHECK(attention.workspace_size(args, cache) == 0);
    CHECK(cache.length() == 0);
    CHECK(out.values_that_are_numbers() == 0);
  }
};

}  // namespace

TEST_CASE("every wrong operand is refused by name, before anything is written") {
  Fixture f;
  const std::int64_t hidden = f.weights.hidden_dim(), width = f.weights.config.out_dim;
  const std::int64_t heads = f.weights.config.heads;
  REQUIRE(run(f.attention, f.arguments()).ok());
  f.out = Activations<float>(2, 3, width);

  f.refuses([](Arguments& a) { a.x.extents[0] = 0; }, "x.extent(0)", 1, 0);
  f.refuses([](Arguments& a) { a.x.extents[1] = 0; }, "x.extent(1)", 1, 0);
  f.refuses([](Arguments& a) { a.x.extents[2] += 1; }, "x.extent(2)", hidden, hidden + 1);
  f.refuses([](Arguments& a) { a.x.strides[2] = 2; }, "x.stride(2)", 1, 2);
  f.refuses([](Arguments& a) { a.x.data = nullptr; }, "x.data", 1, 0);
  f.refuses([](Arguments& a) { a.out.extents[0] = 1; }, "out.extent(0)", 2, 1);
  f.refuses([](Arguments& a) { a.out.extents[1] = 4; }, "out.extent(1)", 3, 4);
  f.refuses([](Arguments& a) { a.out.extents[2] -= 1; }, "out.extent(2)", width, width - 1);
  f.refuses([](Arguments& a) { a.out.strides[2] = 7; }, "out.stride(2)", 1, 7);
  f.refuses([](Arguments& a) { a.out.data = nullptr; }, "out.data", 1, 0);
  f.refuses([](Arguments& a) { a.mask.window = -1; }, "mask.window", 0, -1);
  f.refuses([&](Arguments&) { f.lengths[1] = -3; }, "mask.key_lengths", 0, -3);
  f.refuses([&](Arguments&) { f.lengths[1] = 4; }, "mask.key_lengths", 3, 4);
  f.lengths[1] = 2;
  f.refuses([](Arguments& a) { a.mask.bias.extents[0] += 1; }, "mask.bias.extent(0)", heads,
            heads + 1);
  f.refuses([](Arguments& a) { a.mask.bias.extents[1] = 2; }, "mask.bias.extent(1)", 3, 2);
  f.refuses([](Arguments& a) { a.mask.bias.extents[2] = 2; }, "mask.bias.extent(2)", 3, 2);
  f.refuses([](Arguments& a) { a.mask.bias.strides[2] = 3; }, "mask.bias.stride(2)", 1, 3);
  f.refuses([](Arguments& a) { a.latent_products = LatentProducts::kAbsorbed; }, "latent_products",
            0, 1);

  const auto with_context = [&](const std::function<void(Arguments&)>& spoil) {
    return [&f, spoil](Arguments& a) {
      a.context = f.context.view();
      a.mask = {};
      spoil(a);
    };
  };
  const std::int64_t keys = f.weights.context_dim();
  f.refuses(with_context([](Arguments& a) { a.context.extents[0] = 1; }), "context.extent(0)", 2,
            1);
  f.refuses(with_context([](Arguments& a) { a.context.extents[1] = -1; }), "context.extent(1)", 0,
            -1);
  f.refuses(with_context([](Arguments& a) { a.context.extents[2] -= 1; }), "context.extent(2)",
            keys, keys - 1);
  f.refuses(with_context([](Arguments& a) { a.context.strides[2] = 0; }), "context.stride(2)", 1,
            0);
}

TEST_CASE("cross-attention without a context is refused") {
  Random random(8);
  auto weights = random_layer<float>(random, {.cross = true});
  while (weights.hidden_dim() == weights.context_dim())
    weights = random_layer<float>(random, {.cross = true});
  const Attention attention(weights);
  Activations<float> x(random, 1, 2, weights.hidden_dim()), out(1, 2, weights.config.out_dim);
  const Status status = attention.run({.x = x.view(), .out = out.view()}, {});
  CHECK(std::string(status.argument()) == "context.data");
  CHECK(out.values_that_are_numbers() == 0);
}

TEST_CASE("a workspace that is too small is refused with both sizes") {
  Fixture f;
  const Arguments args = f.arguments();
  const std::size_t size = f.attention.workspace_size(args);
  REQUIRE(size > 0);
  Workspace memory(size - 1);
  auto cache = f.attention.make_cache(2, 8);
  for (const Status& s : {f.attention.run(args, memory), f.attention.run(args, {})}) {
    CHECK(s.code() == Status::Code::kWorkspaceTooSmall);
    CHECK(s.expected() == static_cast<std::int64_t>(size));
  }
  CHECK(f.attention.run(args, memory).given() == static_cast<std::int64_t>(size) - 1);
  CHECK(f.attention.run(args, cache, {}).code() == Status::Code::kWorkspaceTooSmall);
  CHECK(cache.length() == 0);
  CHECK(f.out.values_that_are_numbers() == 0);
}

TEST_CASE("a cache that does not fit is refused") {
  Fixture f({.latent = true});
  Arguments args = f.arguments();
  args.mask = {};
  Workspace memory(1 << 20);

  auto full = f.attention.make_cache(2, 4);
  REQUIRE(run(f.attention, args, full).ok());
  f.out = Activations<float>(2, 3, f.weights.config.out_dim);
  args.out = f.out.view();
  Status s = f.attention.run(args, full, memory);
  CHECK(s.message() ==
        "cache.capacity: expected at least the tokens held and the new ones = 6, got 4");
  CHECK(full.length() == 3);

  auto small = f.attention.make_cache(1, 4);
  s = f.attention.run(args, small, memory);
  CHECK(std::string(s.argument()) == "cache.batch");

  const Attention twin(f.weights);
  auto other = twin.make_cache(2, 4);
  s = f.attention.run(args, other, memory);
  CHECK(std::string(s.argument()) == "cache");

  args.latent_products = LatentProducts::kAbsorbed;
  auto materialized = f.attention.make_cache(2, 4);
  s = f.attention.run(args, materialized, memory);
  CHECK(s.code() == Status::Code::kUnsupported);
  CHECK(f.attention.workspace_size(args, materialized) == 0);
  CHECK(f.out.values_that_are_numbers() == 0);
}

TEST_CASE("absorbed products cannot normalise keys") {
  Fixture f({.latent = true, .head_norms = true});
  f.refuses([](Arguments& a) { a.latent_products = LatentProducts::kAbsorbed; }, "latent_products",
            0, 1);
}

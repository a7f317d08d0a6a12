#include <bda/model/tensor_parallel.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <numeric>
#include <set>

#include "model/layers.hpp"
#include "support/error_of.hpp"

namespace {

using bda_test::error_of;

/// Every value of every tensor another number, so that a slice shows where it was taken.
template <class Layer>
Layer numbered(Layer w) {
  float next = 1;
  const auto fill = [&](auto& values) {
    for (float& x : values) x = next++;
  };
  for (auto* v : {&w.q.values, &w.q_bias, &w.k.weight.values, &w.k.bias, &w.k_rope.weight.values,
                  &w.k_rope.bias, &w.v.weight.values, &w.v.bias, &w.o.values, &w.o_bias})
    fill(*v);
  std::iota(w.sinks.begin(), w.sinks.end(), 100.0);
  return w;
}

TEST_CASE("a rank holds its heads' columns of q, k, v and rows of o") {
  const auto w = numbered(bda_test::grouped_layer());  // 6 heads, 2 K/V heads
  const auto c = w.config;
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    const auto part = bda::shard_heads(w, rank, 2);
    validate(part);
    REQUIRE(part.config.heads == 3);
    REQUIRE(part.config.kv_heads == 1);
    CHECK(part.q(4, 1) == w.q(4, rank * 3 * c.head_dim() + 1));
    CHECK(part.q_bias[2] == w.q_bias[static_cast<std::size_t>(rank * 3 * c.head_dim() + 2)]);
    CHECK(part.k.weight(3, 4) == w.k.weight(3, rank * c.qk_dim + 4));
    CHECK(part.k_rope.weight(3, 1) == w.k_rope.weight(3, rank * c.rope_dim + 1));
    CHECK(part.v.weight(10, 6) == w.v.weight(10, rank * c.v_dim + 6));
    CHECK(part.v.bias[5] == w.v.bias[static_cast<std::size_t>(rank * c.v_dim + 5)]);
    CHECK(part.o(2, 8) == w.o(rank * 3 * c.v_dim + 2, 8));
    CHECK(part.sinks[1] == w.sinks[static_cast<std::size_t>(rank * 3 + 1)]);
    CHECK(part.o_bias == (rank == 0 ? w.o_bias : std::vector<float>{}));
  }
}

TEST_CASE("more ranks than K/V heads: each K/V head on several ranks that follow one another") {
  const auto w = numbered(bda_test::grouped_layer());  // group of 3
  for (std::int64_t rank = 0; rank < 6; ++rank) {
    const bda::HeadShard s = bda::head_shard(w.config, rank, 6);
    CHECK(s.first_head == rank);
    CHECK(s.heads == 1);
    CHECK(s.first_kv_head == rank / 3);
    CHECK(s.kv_heads == 1);
    CHECK(bda::shard_heads(w, rank, 6).v.weight(0, 0) == w.v.weight(0, rank / 3 * w.config.v_dim));
  }
}

TEST_CASE("MLA: down-projections, norms and the shared rotary key are with every rank") {
  auto w = bda_test::latent_layer();
  w.k.basis = bda::IndexSet(11, {0, 2, 4, 6, 8});
  w.k.weight = bda::Matrix<float>(6, 3 * 5);
  const auto part = bda::shard_heads(w, 1, 3);
  validate(part);
  CHECK(part.k.basis == w.k.basis);
  CHECK(part.k.weight.rows == 6);
  CHECK(part.k.weight.cols == 5);
  CHECK(part.k_rope.weight.values == w.k_rope.weight.values);
  CHECK(part.latent->kv_a.values == w.latent->kv_a.values);
  CHECK(part.latent->q_norm == w.latent->q_norm);
}

TEST_CASE("what cannot be split is refused by name") {
  auto w = bda_test::grouped_layer();
  const auto message = [&](std::int64_t rank, std::int64_t ranks) {
    return std::string(error_of([&] { (void)bda::shard_heads(w, rank, ranks); }).what());
  };
  CHECK(message(0, 0) == "ranks: expected at least 1, got 0");
  CHECK(message(2, 2) == "rank: expected a value from 0 to 1, got 2");
  CHECK(message(-1, 2) == "rank: expected a value from 0 to 1, got -1");
  CHECK(message(0, 4) == "ranks: expected a divisor of config.heads = 6, got 4");
  CHECK(message(0, 3) == "ranks: expected a divisor or a multiple of config.kv_heads = 2, got 3");
  w.o = bda::Matrix<float>(6 * 7, 8);
  CHECK(message(0, 2) == "o.cols: expected 9, got 8");
}

}  // namespace

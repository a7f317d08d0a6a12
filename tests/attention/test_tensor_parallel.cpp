// The ranks of a tensor-parallel group: their outputs sum to the whole layer's.
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>

#include "attention/problem.hpp"
#include "bda/attention/bd_attention.hpp"
#include "bda/cpu/backend.hpp"
#include "bda/model/tensor_parallel.hpp"
#include "bda/preparation/prepare.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

namespace {

bool can_split(const AttentionConfig& c, std::int64_t ranks) {
  return c.heads % ranks == 0 && (c.kv_heads % ranks == 0 || ranks % c.kv_heads == 0);
}

/// The values of `view`, of which only those that are no gaps are added to `sum`.
template <class C>
void add(TensorView<C, 3> part, TensorView<C, 3> sum) {
  for (std::int64_t b = 0; b < sum.extent(0); ++b)
    for (std::int64_t t = 0; t < sum.extent(1); ++t)
      for (std::int64_t i = 0; i < sum.extent(2); ++i) sum(b, t, i) += part(b, t, i);
}

}  // namespace

// The oracle bounds a sum of products in any order: partial sums of ranks are one more order.
TEMPLATE_TEST_CASE("ranks run in turn sum to the layer, whatever layer it is", "", double, float,
                   Eigen::bfloat16) {
  using C = compute_t<TestType>;
  int splits = 0, replicated = 0;
  for (std::uint32_t seed = 0; seed < 80; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const LayerTraits traits = random_traits(random);
    const auto weights = random_layer<TestType>(random, traits);
    Problem<C> problem(random, weights, traits.cross);
    const auto expected = problem.expected(Oracle<TestType>(weights));
    for (std::int64_t ranks = 1; ranks <= 9; ++ranks) {
      if (!can_split(weights.config, ranks)) continue;
      CAPTURE(ranks);
      ++splits;
      replicated += ranks > weights.config.kv_heads;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const BDAttention<CpuBackend<TestType>> attention(shard_heads(weights, rank, ranks));
        Activations<C> part(problem.batch, problem.queries, weights.config.out_dim);
        AttentionArguments<C> args = problem.arguments();
        args.out = rank == 0 ? problem.out.view() : part.view();
        if (args.mask.bias.data != nullptr) {
          const HeadShard shard = head_shard(weights.config, rank, ranks);
          args.mask.bias.data = &problem.mask.bias(shard.first_head, 0, 0);
          args.mask.bias.extents[0] = shard.heads;
        }
        REQUIRE(run(attention, args).ok());
        if (rank > 0) add(part.view(), problem.out.view());
      }
      check_within_bounds(problem.out, expected, kMeaningful<C>);
      problem.out = Activations<C>(problem.batch, problem.queries, weights.config.out_dim);
    }
  }
  CHECK(splits > 150);
  CHECK(replicated > 20);
}

namespace {

/// One process of a group of two, and an all-reduce between them.
class Group {
 public:
  Group(std::int64_t rank, int socket) : rank_(rank), socket_(socket) {}
  [[nodiscard]] std::int64_t rank() const { return rank_; }
  /// values = rank 0's + rank 1's, on both.
  [[nodiscard]] bool all_reduce(std::vector<double>& values) const {
    const std::size_t bytes = values.size() * sizeof(double);
    std::vector<double> other(values.size());
    if (!transfer(values, other, bytes)) return false;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += other[i];
    return true;
  }

 private:
  /// Rank 0 sends first: two processes that both wait would wait for ever.
  bool transfer(const std::vector<double>& mine, std::vector<double>& other,
                std::size_t bytes) const {
    return rank_ == 0 ? send(mine, bytes) && receive(other, bytes)
                      : receive(other, bytes) && send(mine, bytes);
  }
  bool send(const std::vector<double>& from, std::size_t bytes) const {
    const char* at = reinterpret_cast<const char*>(from.data());
    for (std::size_t sent = 0; sent < bytes;) {
      const ssize_t n = write(socket_, at + sent, bytes - sent);
      if (n <= 0) return false;
      sent += static_cast<std::size_t>(n);
    }
    return true;
  }
  bool receive(std::vector<double>& to, std::size_t bytes) const {
    char* at = reinterpret_cast<char*>(to.data());
    for (std::size_t got = 0; got < bytes;) {
      const ssize_t n = read(socket_, at + got, bytes - got);
      if (n <= 0) return false;
      got += static_cast<std::size_t>(n);
    }
    return true;
  }

  std::int64_t rank_;
  int socket_;
};

using Layers = std::vector<AttentionWeights<double>>;
constexpr std::int64_t kHidden = 12, kTokens = 9;

/// Two layers of grouped heads with biases.
Layers two_layers() {
  Random random(7);
  Layers layers(2);
  for (AttentionWeights<double>& w : layers) {
    AttentionConfig& c = w.config;
    c.query_dim = c.kv_dim = c.out_dim = kHidden;
    c.heads = 4, c.kv_heads = 2, c.qk_dim = 5, c.v_dim = 3;
    c.scale = 0.4;
    w.q = random.matrix<double>(kHidden, 4 * 5);
    w.k.weight = random.matrix<double>(kHidden, 2 * 5);
    w.v.weight = random.matrix<double>(kHidden, 2 * 3);
    w.o = random.matrix<double>(4 * 3, kHidden);
    w.v.bias = random.vector<double>(2 * 3);
    w.o_bias = random.vector<double>(kHidden);
  }
  return layers;
}

/// x += attention(x), layer by layer: a prefill of four tokens, then one at a time, with a cache a
/// layer. `reduce(values)` follows every attention; false ends it.
template <class Reduce>
bool run_layers(const Layers& layers, std::vector<double>& x, const Reduce& reduce) {
  using Attention = BDAttention<CpuBackend<double>>;
  std::vector<Attention> attention;
  std::vector<Attention::Cache> caches;
  for (const auto& w : layers) {
    attention.emplace_back(w);
    caches.push_back(attention.back().make_cache(1, kTokens));
  }
  for (std::int64_t first = 0; first < kTokens;) {
    const std::int64_t count = first == 0 ? 4 : 1;
    double* const rows = x.data() + first * kHidden;
    for (std::size_t i = 0; i < attention.size(); ++i) {
      std::vector<double> out(static_cast<std::size_t>(count * kHidden));
      AttentionArguments<double> args;
      args.x = {rows, {1, count, kHidden}};
      args.out = {out.data(), {1, count, kHidden}};
      std::vector<std::byte> workspace(attention[i].workspace_size(args, caches[i]));
      if (!attention[i].run(args, caches[i], workspace) || !reduce(out)) return false;
      for (std::size_t j = 0; j < out.size(); ++j) rows[j] += out[j];
    }
    first += count;
  }
  return true;
}

std::vector<double> input() {
  Random random(8);
  return random.vector<double>(kTokens * kHidden);
}

/// The layers of one rank, all tokens, reduced over the group.
bool run_rank(const Layers& layers, const Group& group, std::vector<double>& x) {
  Layers parts;
  for (const auto& w : layers) parts.push_back(shard_heads(w, group.rank(), 2));
  return run_layers(parts, x, [&](std::vector<double>& out) { return group.all_reduce(out); });
}

}  // namespace

TEST_CASE("two processes with half the heads each compute what one computes with all") {
  Layers layers = two_layers();
  std::vector<double> whole = input();
  REQUIRE(run_layers(layers, whole, [](std::vector<double>&) { return true; }));

  for (const bool decomposed : {false, true}) {
    CAPTURE(decomposed);
    if (decomposed)
      for (auto& w : layers) w = prepare<double>(w).weights;
    int sockets[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // no assertion may run here: it would report to nobody
      close(sockets[0]);
      std::vector<double> x = input();
      _exit(run_rank(layers, Group(1, sockets[1]), x) ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    close(sockets[1]);
    std::vector<double> x = input();
    const bool ok = run_rank(layers, Group(0, sockets[0]), x);
    close(sockets[0]);
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == EXIT_SUCCESS);
    REQUIRE(ok);
    // Some 150 roundings of 1.1e-16 on the way through two layers, enlarged by the coefficients of
    // these small heads and the second softmax by less than 1000. A missing head moves values by 1.
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(x[i] - whole[i]));
    CHECK(worst < 150 * 1.2e-16 * 1000);
  }
}

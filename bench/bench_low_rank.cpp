// A linear layer d -> d pruned to rank r on one thread: basis-decomposed, as its factor pair, and
// dense, alternating in one process. All go through the same product.
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "bda/linalg/scalar.hpp"
#include "bda/linear/forward.hpp"
#include "single_thread_time.hpp"

namespace {

using bda::linear::OutputOrder;

template <class T>
using Aligned = std::vector<T, Eigen::aligned_allocator<T>>;

template <class T>
bda::Matrix<T> random_matrix(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(-0.05f, 0.05f);
  bda::Matrix<T> m(rows, cols);
  for (T& x : m.values) x = static_cast<T>(uniform(engine));
  return m;
}

/// A basis of scattered outputs, as pivoting selects it.
bda::IndexSet scattered(std::int64_t d, std::int64_t r) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(d));
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), std::mt19937(1));
  all.resize(static_cast<std::size_t>(r));
  return {d, all};
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <class T>
void low_rank(benchmark::State& state) {
  using C = bda::compute_t<T>;
  const std::int64_t d = state.range(0), r = d / state.range(1), tokens = state.range(2);
  const bda::linear::BasisWeights<T> w{
      scattered(d, r), random_matrix<T>(d, r, 1), random_matrix<T>(r, d - r, 2), {}};
  const bda::linear::BasisLinear<T> natural(w), first(w, OutputOrder::kBasisFirst);
  const bda::linear::FactorLinear<T> pair(
      {random_matrix<T>(d, r, 3), random_matrix<T>(r, d, 4), {}});
  const bda::Matrix<T> dense = random_matrix<T>(d, d, 5);

  Aligned<C> x(static_cast<std::size_t>(tokens * d), C(0.5)), y(x.size());
  const bda::MatrixView<const C> in(x.data(), {tokens, d});
  const bda::MatrixView<C> out(y.data(), {tokens, d});
  bda::cpu::Arena measured;
  bda::cpu::take_product_scratch<C>(measured, tokens, d, d, 1);
  std::vector<std::byte> memory(
      std::max({natural.workspace_size(tokens), pair.workspace_size(tokens), measured.required()}));
  bda::cpu::Arena arena(memory);
  C* const scratch = bda::cpu::take_product_scratch<C>(arena, tokens, d, d, 1);

  std::vector<double> times[4];
  const auto run = [&](const auto& layer) {
    return bda_bench::cpu_seconds([&] {
      if (!layer.run(in, out, memory)) state.SkipWithError("refused");
    });
  };
  for (auto _ : state) {
    times[0].push_back(run(natural));
    times[1].push_back(run(first));
    times[2].push_back(run(pair));
    times[3].push_back(bda_bench::cpu_seconds(
        [&] { bda::linear::detail::multiply<C, T>(in, dense, nullptr, out, scratch, 1); }));
    benchmark::ClobberMemory();
    state.SetIterationTime(times[0].back());
  }
  const double bd = median(times[0]), permuted = median(times[1]), factors = median(times[2]),
               full = median(times[3]);
  state.counters["bd_ms"] = bd * 1e3;
  state.counters["bd_basis_first_ms"] = permuted * 1e3;
  state.counters["pair_ms"] = factors * 1e3;
  state.counters["dense_ms"] = full * 1e3;
  state.counters["pair_over_bd"] = factors / bd;
  state.counters["pair_over_bd_basis_first"] = factors / permuted;
  state.counters["dense_over_bd"] = full / bd;
  state.counters["bytes_bd_over_pair"] =
      static_cast<double>(w.bytes()) / static_cast<double>(pair.weights().bytes());
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"d", "d_over_r", "tokens"})
      ->ArgsProduct({{1024, 4096}, {2, 4}, {1, 16, 256}})
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

BENCHMARK_TEMPLATE(low_rank, float)->Apply(shapes);
BENCHMARK_TEMPLATE(low_rank, Eigen::bfloat16)->Apply(shapes);

}  // namespace

int main(int argc, char** argv) {
  benchmark::AddCustomContext("cpu", bda_bench::cpu_name());
  benchmark::AddCustomContext("compiled_with", BDA_BENCH_FLAGS);
  benchmark::AddCustomContext("vector_instructions", Eigen::SimdInstructionSetsInUse());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}

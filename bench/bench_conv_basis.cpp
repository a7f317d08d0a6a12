// Conv-basis attention against exact attention on one thread: how the time grows with the tokens,
// and where they cross. The scores have a basis of k terms, so that recovery finds it: what is
// timed is recovery, exponential and products, all that `conv_basis::attend` does.
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bda/conv_basis.hpp"
#include "bda/cpu/attend.hpp"
#include "single_thread_time.hpp"

namespace {

/// q, k [n, d]: K_j = rotation(j) w_t, Q_i = rotation(i) u, t the run that column j lies in, k runs
/// of equal length. Their product depends on i - j and t.
struct Problem {
  Eigen::MatrixXd q, k, v;
  bda::conv_basis::RecoverOptions options;

  Problem(std::int64_t n, std::int64_t d, std::int64_t terms) : q(n, d), k(n, d), v(n, d) {
    std::mt19937 engine(1);
    std::normal_distribution<double> normal;
    const double size = std::pow(static_cast<double>(d), -0.25);
    const auto vector = [&](Eigen::Index count) {
      return Eigen::VectorXd(Eigen::VectorXd::NullaryExpr(count, [&] { return normal(engine); }));
    };
    const Eigen::VectorXd u = size * vector(d);
    Eigen::VectorXd w;
    for (std::int64_t i = 0, run = -1; i < n; ++i) {
      if (i * terms / n != run) w = size * vector(d), run = i * terms / n;
      for (std::int64_t p = 0; p < d / 2; ++p) {
        const double angle = std::pow(1e-4, 2.0 * static_cast<double>(p) / static_cast<double>(d)) *
                             static_cast<double>(i);
        const double c = std::cos(angle), s = std::sin(angle);
        q(i, 2 * p) = c * u(2 * p) - s * u(2 * p + 1);
        q(i, 2 * p + 1) = s * u(2 * p) + c * u(2 * p + 1);
        k(i, 2 * p) = c * w(2 * p) - s * w(2 * p + 1);
        k(i, 2 * p + 1) = s * w(2 * p) + c * w(2 * p + 1);
      }
    }
    for (std::int64_t j = 0; j < d; ++j) v.col(j) = vector(n);
    options.window = 4;
    options.delta = 1e-2;
    options.epsilon = 1e-9;  // rounding of angles of up to 65536
  }
};

void conv_basis(benchmark::State& state) {
  const Problem problem(state.range(0), state.range(1), state.range(2));
  std::int64_t terms = 0;
  for (auto _ : state) {
    const auto result =
        bda::conv_basis::attend(problem.q, problem.k, problem.v, 1, problem.options);
    terms = result.recovery.basis.terms();
    benchmark::DoNotOptimize(result.out.data());
  }
  if (terms != state.range(2)) state.SkipWithError("recovery found another number of terms");
}

/// The library's own attention, in C: scores in blocks of 64 queries, Eigen's products.
template <class C>
void exact(benchmark::State& state) {
  namespace cpu = bda::cpu;
  const std::int64_t n = state.range(0), d = state.range(1), block = 64;
  const Problem problem(n, d, 1);
  using Rows = bda::linalg::RowMatrix<C>;
  const Rows q = problem.q.cast<C>(), k = problem.k.cast<C>(), v = problem.v.cast<C>();
  Rows out(n, d);
  cpu::Arena measured;
  cpu::AttendScratch<C, C>(measured, block, n, d, d);
  std::vector<std::byte> memory(measured.required());
  const auto view = [&](const Rows& m) {
    return bda::TensorView<const C, 4>(m.data(), {1, n, 1, d});
  };
  const cpu::ScoreFunction<C> score;
  for (auto _ : state) {
    cpu::attend<C, C>(
        view(q), view(k), view(v), bda::TensorView<C, 4>(out.data(), {1, n, 1, d}), score, nullptr,
        block,
        [&](std::int64_t) {
          cpu::Arena arena(memory);
          return cpu::AttendScratch<C, C>(arena, block, n, d, d);
        },
        1);
    benchmark::DoNotOptimize(out.data());
  }
}

/// Backward: dQ, dK and dV.
void conv_basis_gradient(benchmark::State& state) {
  namespace conv = bda::conv_basis;
  const Problem problem(state.range(0), state.range(1), state.range(2));
  for (auto _ : state) {
    const auto recovery =
        conv::recover(conv::ScoreColumns(problem.q, problem.k, 1), problem.options);
    const conv::AttentionMatrix f(recovery.basis);
    const auto g = conv::attention_gradient(f, problem.q, problem.k, problem.v, 1, problem.v);
    benchmark::DoNotOptimize(g.q.data());
  }
}

const std::vector<std::int64_t> kTokens{256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536};

BENCHMARK(conv_basis)
    ->ArgNames({"tokens", "d", "k"})
    ->ArgsProduct({kTokens, {32, 64}, {1, 4, 16, 64}})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_TEMPLATE(exact, double)
    ->ArgNames({"tokens", "d"})
    ->ArgsProduct({kTokens, {32, 64}})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_TEMPLATE(exact, float)
    ->ArgNames({"tokens", "d"})
    ->ArgsProduct({kTokens, {32, 64}})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(conv_basis_gradient)
    ->ArgNames({"tokens", "d", "k"})
    ->ArgsProduct({{256, 1024, 4096, 16384}, {16}, {4}})
    ->Unit(benchmark::kMillisecond);

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

// The K/V projection on the CPU: basis-decomposed against plain, alternating in one process.
//
// Both go through the same product; what differs is its depth, d - r against d. Where CBLAS was
// found at configure time, its sgemm runs the plain product too (float storage only), after them.
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "bda/core/index_set.hpp"
#include "bda/cpu/projection.hpp"
#include "bda/linalg/scalar.hpp"

#ifdef BDA_BENCH_CBLAS
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);
extern "C" char* openblas_get_corename();
#endif

namespace {

constexpr std::int64_t kDim = 512, kWidth = 128;

/// Whole cache lines, as an engine's activations are.
template <class T>
using Aligned = std::vector<T, Eigen::aligned_allocator<T>>;

template <class Values>
Values normal(std::int64_t count, double scale, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> distribution(0, static_cast<float>(scale));
  Values values(static_cast<std::size_t>(count));
  for (auto& x : values) x = static_cast<typename Values::value_type>(distribution(engine));
  return values;
}

template <class T>
bda::KvProjection<T> projection(std::int64_t heads, bool decomposed) {
  bda::KvProjection<T> p;
  if (decomposed) p.basis = bda::IndexSet::slice(kDim, 0, kWidth);
  p.weight = bda::Matrix<T>(decomposed ? kDim - kWidth : kDim, heads * kWidth);
  p.weight.values = normal<std::vector<T>>(p.weight.size(), 0.05, decomposed ? 1 : 2);
  return p;
}

/// The product of OpenBLAS takes turns with the others, so many calls at a time.
constexpr std::size_t kAlternation = 4;

/// Seconds of one call.
template <class Call>
double seconds(const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <class T>
void projection_cpu(benchmark::State& state) {
  const std::int64_t tokens = state.range(0), heads = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  const std::int64_t cols = heads * kWidth;
  const auto bd = projection<T>(heads, true), plain = projection<T>(heads, false);
  const bda::cpu::ProjectionPlan<float> bd_plan(bd), plain_plan(plain);
  const auto x = normal<Aligned<float>>(tokens * kDim, 1, 3);
  Aligned<float> out(static_cast<std::size_t>(tokens * cols));
  const bda::TensorView<const float, 3> c(x.data(), {1, tokens, kDim});
  const bda::TensorView<float, 4> y(out.data(), {1, tokens, heads, kWidth});
  bda::cpu::Arena measured;
  bda::cpu::take_projection_scratch<float>(measured, plain, tokens, threads);
  std::vector<std::byte> memory(measured.required());
  bda::cpu::Arena arena(memory);
  float* const scratch = bda::cpu::take_projection_scratch<float>(arena, plain, tokens, threads);

  std::vector<double> bd_times, plain_times, blas_times;
  const auto run_blas = [&]([[maybe_unused]] std::size_t calls) {
#ifdef BDA_BENCH_CBLAS
    if constexpr (std::is_same_v<T, float>) {
      openblas_set_num_threads(threads);
      for (std::size_t i = 0; i < calls; ++i)
        blas_times.push_back(seconds([&] {
          cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(tokens),
                      static_cast<int>(cols), kDim, 1, x.data(), kDim, plain.weight.data(),
                      static_cast<int>(cols), 0, out.data(), static_cast<int>(cols));
        }));
      // Its threads spin for a while after each call, on cores that the others' threads need. Nor
      // should the same contestant always be the first after the pause: a call that is not timed.
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      bda::cpu::project(bd, bd_plan, c, y, scratch, threads);
    }
#endif
  };
  for (auto _ : state) {
    bd_times.push_back(seconds([&] { bda::cpu::project(bd, bd_plan, c, y, scratch, threads); }));
    plain_times.push_back(
        seconds([&] { bda::cpu::project(plain, plain_plan, c, y, scratch, threads); }));
    benchmark::ClobberMemory();
    state.SetIterationTime(bd_times.back());
    if (plain_times.size() == blas_times.size() + kAlternation) run_blas(kAlternation);
  }
  run_blas(plain_times.size() - blas_times.size());
  // the plain product's arithmetic; what BD really multiplies is three quarters of it
  const double flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(cols) * kDim;
  const double bd_time = median(bd_times), plain_time = median(plain_times);
  state.counters["ratio_vs_plain"] = plain_time / bd_time;
  state.counters["gflops_bd"] = flops * (kDim - kWidth) / kDim / bd_time * 1e-9;
  state.counters["gflops_plain"] = flops / plain_time * 1e-9;
  if (!blas_times.empty()) {
    state.counters["gflops_openblas"] = flops / median(blas_times) * 1e-9;
    state.counters["ratio_vs_openblas"] = median(blas_times) / bd_time;
  }
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "heads", "threads"})
      ->ArgsProduct({{1, 16, 64, 256, 512, 1024, 2048}, {16, 128}, {1, 2}})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

BENCHMARK_TEMPLATE(projection_cpu, float)->Apply(shapes);
BENCHMARK_TEMPLATE(projection_cpu, Eigen::bfloat16)->Apply(shapes);

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::AddCustomContext("cpu", cpu_name());
  benchmark::AddCustomContext("compiled_with", BDA_BENCH_FLAGS);
  benchmark::AddCustomContext("vector_instructions", Eigen::SimdInstructionSetsInUse());
#ifdef BDA_BENCH_CBLAS
  benchmark::AddCustomContext("openblas_core", openblas_get_corename());
#endif
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}

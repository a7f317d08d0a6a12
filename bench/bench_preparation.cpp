// Preparation of all 27 attention layers of a DeepSeek-V2-Lite-sized model in bf16, per strategy
// and rounding, on the threads of this machine. Weights are random; a layer is prepared, counted
// and let go, as a converter would do it.

#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "bda/preparation/prepare.hpp"
#include "random_layer.hpp"

namespace {

using Bf16 = Eigen::bfloat16;
constexpr int kLayers = 27;

/// Three different layers stand for 27: preparation takes no shortcut on a repeated one.
const std::vector<bda::AttentionWeights<Bf16>>& layers() {
  static const std::vector<bda::AttentionWeights<Bf16>> all{bench::deepseek_v2_lite_layer<Bf16>(1),
                                                            bench::deepseek_v2_lite_layer<Bf16>(2),
                                                            bench::deepseek_v2_lite_layer<Bf16>(3)};
  return all;
}

double peak_memory_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

void prepare_model(benchmark::State& state, const std::string& basis, bda::Rounding rounding) {
  bda::PreparationOptions options;
  options.basis = bda::parse_basis_strategy(basis);
  options.rounding = rounding;
  options.threads = static_cast<int>(std::thread::hardware_concurrency());
  double alpha = 0, residual = 0;
  const auto& model = layers();
  for (auto _ : state) {
    for (int i = 0; i < kLayers; ++i) {
      const auto done =
          bda::prepare<Bf16>(model[static_cast<std::size_t>(i) % model.size()], options);
      alpha = std::max(alpha, done.report.max_alpha());
      residual =
          std::max({residual, done.report.qk->max_residual(), done.report.vo->max_residual()});
    }
  }
  state.counters["threads"] = options.threads;
  state.counters["alpha_max"] = alpha;
  state.counters["residual_max"] = residual;
  state.counters["peak_memory_mib"] = peak_memory_mib();
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* basis :
       {"first_r", "residual_min", "best_slice", "joint_pivot", "latent_rotation"})
    for (const bool aware : {false, true})
      benchmark::RegisterBenchmark(
          (std::string("prepare/") + basis + (aware ? "/aware" : "/plain")).c_str(), prepare_model,
          std::string(basis), aware ? bda::Rounding::kAware : bda::Rounding::kPlain)
          ->Iterations(1)
          ->UseRealTime()
          ->Unit(benchmark::kSecond);
  benchmark::AddCustomContext("bda_flags", BDA_BENCH_FLAGS);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}

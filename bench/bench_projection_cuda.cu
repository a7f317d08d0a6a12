// The fused projection against the plain product it replaces and other references, on one GPU.
//
// One benchmark per (d, r, n, type, M); its contestants run as cuda_contest.cuh says, because the
// clock follows the power drawn over the last tens of milliseconds by 20 %. Medians over the rounds
// become the counters; the manual time is ours. All figures are on random normal data, with the
// weights rotated through more memory than L2 holds.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bda/cuda.hpp"
#include "cuda_contest.cuh"

namespace {

using namespace bda_bench;
using bda::cuda::DeviceInfo;
using bda::cuda::PackedCoefficients;
using bda::cuda::ProjectionArguments;
using bda::cuda::ProjectionConfig;
using bda::cuda::ProjectionKernel;

std::string describe(const ProjectionConfig& c) {
  return std::string(name_of(c.kernel)) + "_" + std::to_string(c.tile_tokens) + "x" +
         std::to_string(c.tile_columns) + "_k" + std::to_string(c.splits);
}

/// Every configuration that can compute it, of those that --configs asks for.
template <class T>
std::vector<ProjectionConfig> all_configs(const ProjectionArguments<T>& args,
                                          const DeviceInfo& device) {
  std::vector<ProjectionConfig> configs;
  const auto add = [&](ProjectionKernel kernel, int tokens, int columns, int splits) {
    const ProjectionConfig c{kernel, tokens, columns, splits, "benchmark"};
    if (describe(c).find(settings.configs) != std::string::npos &&
        validate(c, args.shape(), device).ok())
      configs.push_back(c);
  };
  add(ProjectionKernel::kSm80, 128, 128, 1);
  add(ProjectionKernel::kSm80Resident, 128, 128, 1);
  add(ProjectionKernel::kSm90Resident, 128, 128, 1);
  add(ProjectionKernel::kSm90Short, 128, 64, 1);
  for (int tokens : {128, 256}) add(ProjectionKernel::kSm90Turns, tokens, 128, 1);
  add(ProjectionKernel::kSm90Wave, 256, 128, 1);
  add(ProjectionKernel::kSm90Wave, 128, 192, 1);
  for (int columns : {128, 192}) add(ProjectionKernel::kSm90Stream, 128, columns, 1);
  add(ProjectionKernel::kSm90Halves, 128, 256, 1);
  if (args.x.extent(0) > 2048) return configs;
  for (int columns : {64, 128})
    for (int tokens : bda::cuda::detail::kSmallTokens)
      for (int splits : {1, 2, 3, 4, 6, 8})
        add(ProjectionKernel::kSm90Small, tokens, columns, splits);
  return configs;
}

template <class T>
void project(benchmark::State& state, std::int64_t kv_dim, std::int64_t width, std::int64_t heads,
             std::int64_t tokens) {
  const std::int64_t rest = kv_dim - width, columns = heads * width;
  const DeviceInfo device = bda::cuda::query_device<T>();
  const std::int64_t weight_size = kv_dim * columns;  // of the plain product; ours is smaller
  const int rotation = rotation_of(weight_size * 2);
  const Buffer<T> weights(static_cast<std::size_t>(rotation * weight_size), 1, 0.05f);
  const Buffer<T> x(static_cast<std::size_t>(tokens * kv_dim), 2, 1.0f);
  const Buffer<T> out(static_cast<std::size_t>(tokens * columns), 3, 1.0f);
  const auto weight = [&](int i) { return weights.data + (i % rotation) * weight_size; };

  ProjectionArguments<T> args;
  args.x = {x.data, {tokens, kv_dim}};
  args.packing = {PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, rest, heads, width};
  args.out = {out.data, {tokens, heads, width}};
  args.coefficients = weights.data;

  std::vector<Contestant> contestants;
  const bool graphs = tokens <= settings.graph_tokens;
  const int graph_launches = graphs ? rotation : 0;
  const auto add = [&](const std::string& name, const std::optional<ProjectionConfig>& config) {
    for (bool dependent : {false, true})
      contestants.push_back({name + (dependent ? "_dependent" : ""), [=](int i) {
                               ProjectionArguments<T> a = args;
                               a.coefficients = weight(i);
                               a.force = config;
                               a.dependent_launch = dependent;
                               if (!run(a, device, nullptr, 0, context.stream).ok()) std::abort();
                             }});
  };
  add("ours", std::nullopt);
  if (settings.all_configs)
    for (const ProjectionConfig& config : all_configs(args, device)) add(describe(config), config);
  using Shape = typename BlasProduct<T>::Shape;
  const auto add_plain = [&](const char* name, std::int64_t depth, const T* from,
                             std::size_t keep) {
    const std::vector<Ranked> ranked =
        rank_products<T>({Shape{tokens, columns, depth, kv_dim, columns, columns, false},
                          Shape{tokens, columns, depth, kv_dim, depth, columns, true}},
                         weight, from, nullptr, out.data, graph_launches);
    for (std::size_t i = 0; i < std::min(keep, ranked.size()); ++i) {
      const std::string full = name + std::to_string(i);
      contestants.push_back({full, ranked[i].launch});
      if (graphs) contestants.push_back({full + "_dependent", ranked[i].launch, true});
    }
  };
  add_plain("plain", kv_dim, x.data, 2);
  add_plain("rest", rest, x.data + width, 1);
  // The fused product by the library: batched over heads, x_S added to each with batch stride 0.
  const std::vector<Ranked> batched =
      rank_products<T>({Shape{tokens, width, rest, kv_dim, columns, columns, false,
                              static_cast<int>(heads), width, true},
                        Shape{tokens, width, rest, kv_dim, rest, columns, true,
                              static_cast<int>(heads), width * rest, true}},
                       weight, x.data + width, x.data, out.data, graph_launches);
  if (!batched.empty()) contestants.push_back({"batched0", batched[0].launch});

  std::map<std::string, double> us = contest(state, contestants, {}, graph_launches);
  const auto best = [&](const std::string& prefix, const std::string& suffix) {
    double least = 0;
    for (int i = 0; i < 2; ++i)
      if (const auto it = us.find(prefix + std::to_string(i) + suffix); it != us.end())
        least = least > 0 ? std::min(least, it->second) : it->second;
    return least;
  };
  const double ours = us["ours"], plain = best("plain", "");
  const double flops = 2.0 * static_cast<double>(tokens * columns * rest);
  const double read = 2.0 * static_cast<double>(tokens * kv_dim + rest * columns);
  const double written = 2.0 * static_cast<double>(tokens * columns);
  const double floor_us =
      std::max(flops / context.flops_per_us,
               read / context.copy_bytes_per_us + written / context.write_bytes_per_us);
  auto& counters = state.counters;
  counters["ours_us"] = ours;
  counters["ours_dependent_us"] = us["ours_dependent"];
  counters["plain_us"] = plain;
  counters["plain_rest_us"] = best("rest", "");
  counters["batched_beta1_us"] = best("batched", "");
  counters["ratio_vs_plain"] = plain / ours;
  counters["ratio_vs_plain_dependent"] = plain / us["ours_dependent"];
  counters["ratio_vs_rest"] = best("rest", "") / ours;
  if (const double both = best("plain", "_dependent"); both > 0) {
    counters["plain_dependent_us"] = both;
    counters["ratio_both_dependent"] = both / us["ours_dependent"];
  }
  counters["tflops"] = flops / ours * 1e-6;
  counters["gbytes_per_second"] = (read + written) / ours * 1e-3;
  counters["share_of_floor"] = floor_us / ours;
  if (settings.all_configs)
    for (std::size_t i = 2; i < contestants.size(); ++i)
      if (contestants[i].name.rfind("sm", 0) == 0)
        counters[contestants[i].name] = us[contestants[i].name];
  state.SetLabel(describe(pick(args.shape(), device)) + ", dependent " +
                 describe(pick(args.shape(), device, true)));
}

/// The rates that the floors are computed with: medians over the rounds, in this process.
void ceilings(benchmark::State& state) {
  constexpr std::int64_t kSide = 8192, kBytes = std::int64_t{1} << 30;
  const Buffer<__half> a(kSide * kSide, 1, 1.0f), b(kSide * kSide, 2, 0.05f);
  const Buffer<__half> from(kBytes / 2, 3, 1.0f), to(kBytes / 2, 4, 1.0f);
  using Shape = BlasProduct<__half>::Shape;
  const std::vector<Ranked> products = rank_products<__half>(
      {Shape{kSide, kSide, kSide, kSide, kSide, kSide, false},
       Shape{kSide, kSide, kSide, kSide, kSide, kSide, true}},
      [&](int) { return b.data; }, a.data, nullptr, to.data);
  std::vector<double> copy, write, product;
  for (auto _ : state) {
    copy.push_back(time_stream(
        [&](int) {
          CHECK_CUDA(cudaMemcpyAsync(to.data, from.data, kBytes, cudaMemcpyDeviceToDevice,
                                     context.stream));
        },
        5));
    write.push_back(time_stream(
        [&](int) { CHECK_CUDA(cudaMemsetAsync(to.data, 1, kBytes, context.stream)); }, 5));
    product.push_back(time_stream(products[0].launch, 5));
    state.SetIterationTime(product.back() * 1e-6);
  }
  const auto median = [](std::vector<double>& v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
  };
  context.copy_bytes_per_us = 2.0 * kBytes / median(copy);
  context.write_bytes_per_us = 1.0 * kBytes / median(write);
  context.flops_per_us = 2.0 * kSide * kSide * kSide / median(product);
  state.counters["copy_gbytes_per_second"] = context.copy_bytes_per_us * 1e-3;
  state.counters["write_gbytes_per_second"] = context.write_bytes_per_us * 1e-3;
  state.counters["product_8192_tflops"] = context.flops_per_us * 1e-6;
}

template <class T>
void add_benchmarks(const char* type) {
  constexpr std::int64_t kShapes[][3] = {{512, 128, 128}, {512, 128, 16}, {512, 128, 64},
                                         {1536, 128, 12}, {768, 64, 12},  {2048, 128, 16}};
  constexpr std::int64_t kTokens[] = {1,    16,   64,   128,   256,   512,  1024,
                                      2048, 4096, 8192, 16384, 32768, 65536};
  for (const auto& [kv_dim, width, heads] : kShapes)
    for (std::int64_t tokens : kTokens) {
      const std::string name = std::string("projection/") + type + "/d:" + std::to_string(kv_dim) +
                               "/r:" + std::to_string(width) + "/n:" + std::to_string(heads) +
                               "/M:" + std::to_string(tokens);
      benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State& s) { project<T>(s, kv_dim, width, heads, tokens); })
          ->UseManualTime()
          ->Iterations(settings.rounds)
          ->Unit(benchmark::kMicrosecond);
    }
}

}  // namespace

int main(int argc, char** argv) {
  return bda_bench::run_benchmarks(argc, argv, [] {
    // First, whatever the filter: the floors need it.
    benchmark::RegisterBenchmark("ceilings", ceilings)
        ->UseManualTime()
        ->Iterations(settings.rounds)
        ->Unit(benchmark::kMicrosecond);
    add_benchmarks<__half>("fp16");
    add_benchmarks<__nv_bfloat16>("bf16");
  });
}

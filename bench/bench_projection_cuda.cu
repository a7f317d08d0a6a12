// The fused projection against the plain product it replaces and other references, on one GPU.
//
// One benchmark per (d, r, n, type, M): its contestants run in alternation, because the clock
// follows the power drawn over the last tens of milliseconds by 20 %. In streams, each sample comes
// after some milliseconds of the plain product, untimed: so all contestants, the plain product too,
// start from the same clock and power budget, and not from what the one before them left.
// Medians over the rounds become the counters; the manual time is ours. All figures are on random
// normal data, with the weights rotated through more memory than L2 holds. Flags besides Google
// Benchmark's: --rounds=N, --warm_us=, --sample_us= (of each round), --graph_tokens=M (up to which
// launches are timed in graphs), --all_configs (every configuration that fits, not only the chosen
// one).
#include <benchmark/benchmark.h>
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bda/cuda.hpp"

namespace {

using bda::cuda::DeviceInfo;
using bda::cuda::PackedCoefficients;
using bda::cuda::ProjectionArguments;
using bda::cuda::ProjectionConfig;
using bda::cuda::ProjectionKernel;

#define CHECK_CUDA(call)                                                         \
  do {                                                                           \
    const auto code_ = (call);                                                   \
    if (static_cast<int>(code_) != 0) {                                          \
      std::fprintf(stderr, "%s:%d: %s returned %d\n", __FILE__, __LINE__, #call, \
                   static_cast<int>(code_));                                     \
      std::exit(1);                                                              \
    }                                                                            \
  } while (false)

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;   // for cublasLt
constexpr std::int64_t kRotatedBytes = std::int64_t{100} << 20;  // twice the L2 of an H100
constexpr int kGraphLaunches = 24;

struct Settings {
  int rounds = 11;
  int graph_tokens = 512;  // up to here launches are timed in graphs: a stream waits for the host
  double warm_us = 15000, sample_us = 10000;  // of the plain product before, of a sample
  bool all_configs = false;
} settings;

struct Context {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* workspace = nullptr;
  double copy_bytes_per_us = 0, write_bytes_per_us = 0, flops_per_us = 0;  // ceilings
} context;

template <class T>
constexpr cudaDataType_t kBlasType = std::is_same_v<T, __half> ? CUDA_R_16F : CUDA_R_16BF;

template <class T>
__global__ void fill_normal(T* data, std::size_t count, unsigned seed, float scale) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    unsigned long long z = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    const float u = (static_cast<float>(z >> 40) + 1.0f) * 0x1p-24f;
    const float v = static_cast<float>(z & 0xffffffu) * 0x1p-24f;
    data[i] = static_cast<T>(scale * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
  }
}

template <class T>
struct Buffer {
  Buffer(std::size_t count, unsigned seed, float scale) {
    CHECK_CUDA(cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(T)));
    fill_normal<<<1024, 256, 0, context.stream>>>(data, count, seed, scale);
    CHECK_CUDA(cudaGetLastError());
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data = nullptr;
};

using Launch = std::function<void(int)>;  // the i-th launch: which of the rotated weights

/// Microseconds a launch takes, over `launches` of them in a row after two untimed ones.
double time_stream(const Launch& launch, int launches) {
  for (int i = 0; i < 2; ++i) launch(i);
  CHECK_CUDA(cudaEventRecord(context.begin, context.stream));
  for (int i = 0; i < launches; ++i) launch(i);
  CHECK_CUDA(cudaEventRecord(context.end, context.stream));
  CHECK_CUDA(cudaEventSynchronize(context.end));
  float ms = 0;
  CHECK_CUDA(cudaEventElapsedTime(&ms, context.begin, context.end));
  return 1e3 * ms / launches;
}

/// kGraphLaunches launches as a graph; with `dependent`, its kernel-to-kernel edges made
/// programmatic after the fact, which is how a library's launches can be let to overlap.
struct Graph {
  Graph(const Launch& launch, bool dependent) {
    cudaGraph_t graph = nullptr;
    CHECK_CUDA(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kGraphLaunches; ++i) launch(i);
    CHECK_CUDA(cudaStreamEndCapture(context.stream, &graph));
    if (dependent) make_dependent(graph);
    if (cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess) {
      (void)cudaGetLastError();
      exec = nullptr;
    }
    cudaGraphDestroy(graph);
  }
  ~Graph() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  static void make_dependent(cudaGraph_t graph) {
    std::size_t count = 0;
    CHECK_CUDA(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &count));
    std::vector<cudaGraphNode_t> from(count), to(count);
    std::vector<cudaGraphEdgeData> data(count);
    CHECK_CUDA(cudaGraphGetEdges(graph, from.data(), to.data(), data.data(), &count));
    const auto is_kernel = [](cudaGraphNode_t node) {
      cudaGraphNodeType type;
      CHECK_CUDA(cudaGraphNodeGetType(node, &type));
      return type == cudaGraphNodeTypeKernel;
    };
    for (std::size_t i = 0; i < count; ++i) {
      if (!is_kernel(from[i]) || !is_kernel(to[i])) continue;
      cudaGraphEdgeData programmatic{};
      programmatic.from_port = cudaGraphKernelNodePortProgrammatic;
      programmatic.type = cudaGraphDependencyTypeProgrammatic;
      CHECK_CUDA(cudaGraphRemoveDependencies(graph, &from[i], &to[i], &data[i], 1));
      CHECK_CUDA(cudaGraphAddDependencies(graph, &from[i], &to[i], &programmatic, 1));
    }
  }
  void replay() const { CHECK_CUDA(cudaGraphLaunch(exec, context.stream)); }
  cudaGraphExec_t exec = nullptr;
};

// ---- cublasLt

struct Heuristic {  // a named struct: nvcc 13.0 cannot hold cublasLt's unnamed one in a vector
  cublasLtMatmulHeuristicResult_t value;
};

/// out [M, N] = x [M, K] W, or with batches out[:, b, :] = addend + x W_b for b < batches: cublasLt
/// sees the transposed problem, column-major.
template <class T>
struct BlasProduct {
  struct Shape {
    std::int64_t tokens, columns, depth;  // of one batch
    std::int64_t x_stride, weight_stride, out_stride;
    bool transposed;  // W as [columns, depth]
    int batches = 1;  // along the columns
    std::int64_t weight_batch = 0;
    bool add = false;  // beta = 1, the same addend for every batch
  };

  explicit BlasProduct(const Shape& s) : shape(s) {
    CHECK_CUDA(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t op = s.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    CHECK_CUDA(
        cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof op));
    const auto layout = [&](std::int64_t rows, std::int64_t cols, std::int64_t stride,
                            std::int64_t batch) {
      cublasLtMatrixLayout_t l = nullptr;
      CHECK_CUDA(cublasLtMatrixLayoutCreate(&l, kBlasType<T>, static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(cols), stride));
      CHECK_CUDA(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &s.batches,
                                                  sizeof s.batches));
      CHECK_CUDA(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                  &batch, sizeof batch));
      return l;
    };
    a = s.transposed ? layout(s.depth, s.columns, s.weight_stride, s.weight_batch)
                     : layout(s.columns, s.depth, s.weight_stride, s.weight_batch);
    b = layout(s.depth, s.tokens, s.x_stride, 0);
    c = layout(s.columns, s.tokens, s.add ? s.x_stride : s.out_stride, 0);
    d = layout(s.columns, s.tokens, s.out_stride, s.batches > 1 ? s.columns : 0);
    if (!s.add) c = d;
    cublasLtMatmulPreference_t preference = nullptr;
    CHECK_CUDA(cublasLtMatmulPreferenceCreate(&preference));
    CHECK_CUDA(cublasLtMatmulPreferenceSetAttribute(preference,
                                                    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                    &kWorkspaceBytes, sizeof kWorkspaceBytes));
    cublasLtMatmulHeuristicResult_t results[16];
    int found = 0;
    if (cublasLtMatmulAlgoGetHeuristic(context.blas, operation, a, b, c, d, preference, 16, results,
                                       &found) != CUBLAS_STATUS_SUCCESS)
      found = 0;
    for (int i = 0; i < found; ++i)
      if (results[i].state == CUBLAS_STATUS_SUCCESS) heuristics.push_back({results[i]});
    cublasLtMatmulPreferenceDestroy(preference);
  }
  bool launch(std::size_t which, const T* weight, const T* x, const T* addend, T* out) const {
    const float one = 1, beta = shape.add ? 1 : 0;
    return cublasLtMatmul(context.blas, operation, &one, weight, a, x, b, &beta,
                          shape.add ? addend : out, c, out, d, &heuristics[which].value.algo,
                          context.workspace, kWorkspaceBytes,
                          context.stream) == CUBLAS_STATUS_SUCCESS;
  }
  Shape shape;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
  std::vector<Heuristic> heuristics;
};

struct Ranked {
  double us;
  Launch launch;
};

/// All heuristics of all `shapes`, fastest first by a short trial.
template <class T>
std::vector<Ranked> rank_products(const std::vector<typename BlasProduct<T>::Shape>& shapes,
                                  const std::function<const T*(int)>& weight, const T* x,
                                  const T* addend, T* out) {
  std::vector<Ranked> ranked;
  for (const auto& shape : shapes) {
    const auto product = std::make_shared<BlasProduct<T>>(shape);
    for (std::size_t i = 0; i < product->heuristics.size(); ++i) {
      if (!product->launch(i, weight(0), x, addend, out)) continue;
      const Launch launch = [=](int j) { product->launch(i, weight(j), x, addend, out); };
      const double once = time_stream(launch, 1);
      const int launches = std::clamp(static_cast<int>(1000 / once), 3, 20);
      ranked.push_back(
          {std::min(time_stream(launch, launches), time_stream(launch, launches)), launch});
    }
  }
  CHECK_CUDA(cudaStreamSynchronize(context.stream));
  std::sort(ranked.begin(), ranked.end(),
            [](const Ranked& p, const Ranked& q) { return p.us < q.us; });
  return ranked;
}

// ---- contestants

struct Contestant {
  std::string name;
  Launch launch;
  bool graph_dependent = false;  // edges made programmatic in the graph
  std::vector<double> us = {};
  std::unique_ptr<Graph> graph = nullptr;
  [[nodiscard]] double median() const {
    std::vector<double> sorted = us;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

std::string describe(const ProjectionConfig& c) {
  return std::string(name_of(c.kernel)) + "_" + std::to_string(c.tile_tokens) + "x" +
         std::to_string(c.tile_columns) + "_k" + std::to_string(c.splits);
}

template <class T>
std::vector<ProjectionConfig> contest_configs(const ProjectionArguments<T>& args,
                                              const DeviceInfo& device) {
  std::vector<ProjectionConfig> configs{pick(args.shape(), device)};
  if (!settings.all_configs) return configs;
  const auto add = [&](ProjectionKernel kernel, int tokens, int columns, int splits) {
    const ProjectionConfig c{kernel, tokens, columns, splits, "benchmark"};
    if (validate(c, args.shape(), device).ok()) configs.push_back(c);
  };
  add(ProjectionKernel::kSm80, 128, 128, 1);
  add(ProjectionKernel::kSm90Resident, 128, 128, 1);
  for (int columns : {128, 192, 256}) add(ProjectionKernel::kSm90Stream, 128, columns, 1);
  if (args.x.extent(0) <= 512)
    for (int columns : {64, 128})
      for (int splits : {1, 2, 4, 6, 8})
        for (int tokens : {16, 32, 64}) add(ProjectionKernel::kSm90Small, tokens, columns, splits);
  return configs;
}

template <class T>
void project(benchmark::State& state, std::int64_t kv_dim, std::int64_t width, std::int64_t heads,
             std::int64_t tokens) {
  const std::int64_t rest = kv_dim - width, columns = heads * width;
  const DeviceInfo device = bda::cuda::query_device<T>();
  const std::int64_t weight_size = kv_dim * columns;  // of the plain product; ours is smaller
  const int rotation = static_cast<int>(
      std::clamp<std::int64_t>(kRotatedBytes / (weight_size * 2) + 1, 2, kGraphLaunches));
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
  for (const ProjectionConfig& config : contest_configs(args, device))
    for (bool dependent : {false, true}) {
      const std::string name = contestants.size() < 2 ? "ours" : describe(config);
      contestants.push_back({name + (dependent ? "_dependent" : ""), [=](int i) {
                               ProjectionArguments<T> a = args;
                               a.coefficients = weight(i);
                               a.force = config;
                               a.dependent_launch = dependent;
                               if (!run(a, device, nullptr, 0, context.stream).ok()) std::abort();
                             }});
    }
  using Shape = typename BlasProduct<T>::Shape;
  const auto add_plain = [&](const char* name, std::int64_t depth, const T* from,
                             std::size_t keep) {
    const std::vector<Ranked> ranked =
        rank_products<T>({Shape{tokens, columns, depth, kv_dim, columns, columns, false},
                          Shape{tokens, columns, depth, kv_dim, depth, columns, true}},
                         weight, from, nullptr, out.data);
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
                       weight, x.data + width, x.data, out.data);
  if (!batched.empty()) contestants.push_back({"batched0", batched[0].launch});

  if (graphs)
    for (Contestant& c : contestants)
      c.graph = std::make_unique<Graph>(c.launch, c.graph_dependent);
  CHECK_CUDA(cudaStreamSynchronize(context.stream));
  const double once = time_stream(contestants[0].launch, 3) * (graphs ? kGraphLaunches : 1);
  const int launches = std::clamp(static_cast<int>(settings.sample_us / once), 3, 2000);
  const auto plain_at = std::find_if(contestants.begin(), contestants.end(),
                                     [](const Contestant& c) { return c.name == "plain0"; });
  const int warm = std::clamp(static_cast<int>(settings.warm_us / once), 2, 4000);
  // In a new order every round: what ran before a contestant, not only right before, shows in its
  // clock.
  std::vector<std::size_t> order(contestants.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::mt19937 random(1);
  for (auto _ : state) {
    std::shuffle(order.begin(), order.end(), random);
    for (std::size_t at : order) {
      Contestant& c = contestants[at];
      if (graphs) {
        if (c.graph->exec == nullptr) continue;
        c.us.push_back(time_stream([&](int) { c.graph->replay(); }, launches) / kGraphLaunches);
      } else {
        for (int i = 0; i < warm; ++i) plain_at->launch(i);
        c.us.push_back(time_stream(c.launch, launches));
      }
    }
    state.SetIterationTime(contestants[0].us.back() * 1e-6);
  }

  std::map<std::string, double> us;
  for (const Contestant& c : contestants)
    if (!c.us.empty()) us[c.name] = c.median();
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
  state.SetLabel(describe(pick(args.shape(), device)));
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
  std::vector<char*> rest;
  for (int i = 0; i < argc; ++i) {
    if (std::strncmp(argv[i], "--rounds=", 9) == 0)
      settings.rounds = std::atoi(argv[i] + 9);
    else if (std::strncmp(argv[i], "--graph_tokens=", 15) == 0)
      settings.graph_tokens = std::atoi(argv[i] + 15);
    else if (std::strncmp(argv[i], "--warm_us=", 10) == 0)
      settings.warm_us = std::atof(argv[i] + 10);
    else if (std::strncmp(argv[i], "--sample_us=", 12) == 0)
      settings.sample_us = std::atof(argv[i] + 12);
    else if (std::strcmp(argv[i], "--all_configs") == 0)
      settings.all_configs = true;
    else
      rest.push_back(argv[i]);
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 1;

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device: nothing to measure\n");
    return 0;
  }
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  benchmark::AddCustomContext("device", properties.name);
  CHECK_CUDA(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaEventCreate(&context.begin));
  CHECK_CUDA(cudaEventCreate(&context.end));
  CHECK_CUDA(cublasLtCreate(&context.blas));
  CHECK_CUDA(cudaMalloc(&context.workspace, kWorkspaceBytes));
  benchmark::AddCustomContext("cublasLt", std::to_string(cublasLtGetVersion()));

  // First, whatever the filter: the floors need it.
  benchmark::RegisterBenchmark("ceilings", ceilings)
      ->UseManualTime()
      ->Iterations(settings.rounds)
      ->Unit(benchmark::kMicrosecond);
  add_benchmarks<__half>("fp16");
  add_benchmarks<__nv_bfloat16>("bf16");
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

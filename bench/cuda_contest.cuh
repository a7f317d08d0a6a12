// What the GPU benchmarks have in common: contestants that run in alternation in one process, timed
// with events in streams or in graphs, and cublasLt's products by the best of all its heuristics.
#pragma once

#include <benchmark/benchmark.h>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
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
#include <type_traits>
#include <vector>

#define CHECK_CUDA(call)                                                         \
  do {                                                                           \
    const auto code_ = (call);                                                   \
    if (static_cast<int>(code_) != 0) {                                          \
      std::fprintf(stderr, "%s:%d: %s returned %d\n", __FILE__, __LINE__, #call, \
                   static_cast<int>(code_));                                     \
      std::exit(1);                                                              \
    }                                                                            \
  } while (false)

namespace bda_bench {

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;  // for cublasLt

/// What the weights of a graph's launches rotate through: eight times the L2 of an H100. Twice is
/// not enough: data that was loaded evict-first pushes out its like, so that a third of it was
/// still there.
constexpr std::int64_t kRotatedBytes = std::int64_t{400} << 20;

/// How many weights of `bytes` there are to rotate: also the launches of a graph.
inline int rotation_of(std::int64_t bytes) { return static_cast<int>(kRotatedBytes / bytes + 1); }

/// Flags besides Google Benchmark's: --rounds=, --graph_tokens=, --warm_us=, --sample_us=,
/// --all_configs, --configs=.
struct Settings {
  int rounds = 9;
  int graph_tokens = 512;  // up to here launches are timed in graphs: a stream waits for the host
  double warm_us = 15000, sample_us = 10000;  // untimed before a sample, of a sample
  bool all_configs = false;  // every configuration that fits, not only the chosen one
  std::string configs = {};  // of these, those that have this in their name
};
inline Settings settings;

struct Context {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* workspace = nullptr;
  double copy_bytes_per_us = 0, write_bytes_per_us = 0, flops_per_us = 0;  // ceilings
};
inline Context context;

template <class T>
constexpr cudaDataType_t kBlasType = std::is_same_v<T, __half>          ? CUDA_R_16F
                                     : std::is_same_v<T, __nv_fp8_e4m3> ? CUDA_R_8F_E4M3
                                                                        : CUDA_R_16BF;

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

/// Microseconds a launch takes, over `launches` of them in a row after `untimed` ones.
inline double time_stream(const Launch& launch, int launches, int untimed = 2) {
  for (int i = 0; i < untimed; ++i) launch(i);
  CHECK_CUDA(cudaEventRecord(context.begin, context.stream));
  for (int i = 0; i < launches; ++i) launch(i);
  CHECK_CUDA(cudaEventRecord(context.end, context.stream));
  CHECK_CUDA(cudaEventSynchronize(context.end));
  float ms = 0;
  CHECK_CUDA(cudaEventElapsedTime(&ms, context.begin, context.end));
  return 1e3 * ms / launches;
}

/// `launches` of them as a graph; with `dependent`, its kernel-to-kernel edges made programmatic
/// after the fact, which is how a library's launches can be let to overlap.
struct Graph {
  Graph(const Launch& launch, int launches, bool dependent) {
    cudaGraph_t graph = nullptr;
    CHECK_CUDA(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; ++i) launch(i);
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
template <class T, class Out = T>
struct BlasProduct {
  struct Shape {
    std::int64_t tokens, columns, depth;  // of one batch
    std::int64_t x_stride, weight_stride, out_stride;
    bool transposed;  // W as [columns, depth]
    int batches = 1;  // along the columns
    std::int64_t weight_batch = 0;
    bool add = false;                          // beta = 1, the same addend for every batch
    std::int64_t x_batch = 0, out_batch = -1;  // between batches; -1: the columns of one
  };

  explicit BlasProduct(const Shape& s) : shape(s) {
    CHECK_CUDA(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t op = s.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    CHECK_CUDA(
        cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof op));
    const auto layout = [&](std::int64_t rows, std::int64_t cols, std::int64_t stride,
                            std::int64_t batch, cudaDataType_t type = kBlasType<T>) {
      cublasLtMatrixLayout_t l = nullptr;
      CHECK_CUDA(cublasLtMatrixLayoutCreate(&l, type, static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(cols), stride));
      CHECK_CUDA(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &s.batches,
                                                  sizeof s.batches));
      CHECK_CUDA(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                  &batch, sizeof batch));
      return l;
    };
    a = s.transposed ? layout(s.depth, s.columns, s.weight_stride, s.weight_batch)
                     : layout(s.columns, s.depth, s.weight_stride, s.weight_batch);
    b = layout(s.depth, s.tokens, s.x_stride, s.x_batch);
    c = layout(s.columns, s.tokens, s.add ? s.x_stride : s.out_stride, 0);
    d = layout(s.columns, s.tokens, s.out_stride,
               s.out_batch >= 0 ? s.out_batch
               : s.batches > 1  ? s.columns
                                : 0,
               kBlasType<Out>);
    if (!s.add) c = d;
    if (kBlasType<T> == CUDA_R_8F_E4M3) {
      static float* const one = [] {  // the scales, on the device
        const float value = 1;
        float* data = nullptr;
        CHECK_CUDA(cudaMalloc(reinterpret_cast<void**>(&data), sizeof value));
        CHECK_CUDA(cudaMemcpy(data, &value, sizeof value, cudaMemcpyHostToDevice));
        return data;
      }();
      for (const auto scale :
           {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
            CUBLASLT_MATMUL_DESC_D_SCALE_POINTER})
        if (scale != CUBLASLT_MATMUL_DESC_D_SCALE_POINTER || kBlasType<Out> == CUDA_R_8F_E4M3)
          CHECK_CUDA(cublasLtMatmulDescSetAttribute(operation, scale, &one, sizeof one));
    }
    if (kBlasType<T> == CUDA_R_8F_E4M3)  // an fp8 product's addend is of 16 bits, here unused
      c = layout(s.columns, s.tokens, s.out_stride, 0, CUDA_R_16BF);
    cublasLtMatmulPreference_t preference = nullptr;
    CHECK_CUDA(cublasLtMatmulPreferenceCreate(&preference));
    CHECK_CUDA(cublasLtMatmulPreferenceSetAttribute(preference,
                                                    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                    &kWorkspaceBytes, sizeof kWorkspaceBytes));
    cublasLtMatmulHeuristicResult_t results[16];
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        context.blas, operation, a, b, c, d, preference, 16, results, &found);
    if (status != CUBLAS_STATUS_SUCCESS) {
      std::fprintf(stderr, "cublasLt has no product [%lld, %lld, %lld]: status %d\n",
                   static_cast<long long>(s.tokens), static_cast<long long>(s.columns),
                   static_cast<long long>(s.depth), static_cast<int>(status));
      found = 0;
    }
    for (int i = 0; i < found; ++i)
      if (results[i].state == CUBLAS_STATUS_SUCCESS) heuristics.push_back({results[i]});
    cublasLtMatmulPreferenceDestroy(preference);
  }
  bool launch(std::size_t which, const T* weight, const T* x, const T* addend, Out* out) const {
    const float one = 1, beta = shape.add ? 1 : 0;
    const void* c_data = shape.add ? static_cast<const void*>(addend) : out;
    if (kBlasType<T> == CUDA_R_8F_E4M3) c_data = nullptr;
    const cublasStatus_t status = cublasLtMatmul(
        context.blas, operation, &one, weight, a, x, b, &beta, c_data, c, out, d,
        &heuristics[which].value.algo, context.workspace, kWorkspaceBytes, context.stream);
    if (status != CUBLAS_STATUS_SUCCESS && which == 0)
      std::fprintf(stderr, "cublasLtMatmul returned %d\n", static_cast<int>(status));
    return status == CUBLAS_STATUS_SUCCESS;
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

/// All heuristics of all `shapes`, fastest first by a short trial, in graphs where a stream would
/// wait for the host (`graph_launches` > 0).
template <class T, class Out = T>
std::vector<Ranked> rank_products(const std::vector<typename BlasProduct<T, Out>::Shape>& shapes,
                                  const std::function<const T*(int)>& weight, const T* x,
                                  const T* addend, Out* out, int graph_launches = 0) {
  std::vector<Ranked> ranked;
  for (const auto& shape : shapes) {
    const auto product = std::make_shared<BlasProduct<T, Out>>(shape);
    for (std::size_t i = 0; i < product->heuristics.size(); ++i) {
      if (!product->launch(i, weight(0), x, addend, out)) continue;
      const Launch launch = [=](int j) { product->launch(i, weight(j), x, addend, out); };
      if (graph_launches > 0) {
        const Graph graph(launch, graph_launches, false);
        if (graph.exec == nullptr) continue;
        const auto replay = [&](int) { graph.replay(); };
        ranked.push_back(
            {std::min(time_stream(replay, 1, 1), time_stream(replay, 1, 0)) / graph_launches,
             launch});
        continue;
      }
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

/// Runs the contestants by turns, and returns their medians, in microseconds, by name. Short
/// samples without anything before them (--warm_us=0) give all contestants one clock, that of their
/// common power draw. Else, in streams (`graph_launches` = 0), each sample comes after `warm_up`,
/// untimed, or without one after the contestant itself, so that each has the clock that its own
/// power draw leaves it. Every round has a new order, because what ran before a contestant, not
/// only right before, shows in its clock.
inline std::map<std::string, double> contest(benchmark::State& state,
                                             std::vector<Contestant>& contestants,
                                             const Launch& warm_up, int graph_launches) {
  const bool graphs = graph_launches > 0;
  if (graphs)
    for (Contestant& c : contestants)
      c.graph = std::make_unique<Graph>(c.launch, graph_launches, c.graph_dependent);
  CHECK_CUDA(cudaStreamSynchronize(context.stream));
  std::vector<std::size_t> order(contestants.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::mt19937 random(1);
  for (auto _ : state) {
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t at : order) {
      Contestant& c = contestants[at];
      if (graphs && c.graph->exec == nullptr) continue;
      if (!graphs && settings.warm_us > 0) {
        const Launch& before = warm_up ? warm_up : c.launch;
        const double once = time_stream(before, 2);
        const int launches = std::clamp(static_cast<int>(settings.warm_us / once), 2, 4000);
        for (int i = 0; i < launches; ++i) before(i);
      }
      const Launch launch = graphs ? Launch([&](int) { c.graph->replay(); }) : c.launch;
      const int per_launch = graphs ? graph_launches : 1, least = graphs ? 1 : 3;
      const double once = c.us.empty() ? time_stream(launch, 2) : c.us.back() * per_launch;
      const int launches = std::clamp(static_cast<int>(settings.sample_us / once), least, 2000);
      c.us.push_back(time_stream(launch, launches, graphs ? 1 : 2) / per_launch);
    }
    state.SetIterationTime(contestants[0].us.back() * 1e-6);
  }
  CHECK_CUDA(cudaGetLastError());
  std::map<std::string, double> us;
  for (const Contestant& c : contestants)
    if (!c.us.empty()) us[c.name] = c.median();
  return us;
}

/// A GPU benchmark's main: reads the settings, and calls `add_benchmarks` once a device is there.
template <class AddBenchmarks>
int run_benchmarks(int argc, char** argv, const AddBenchmarks& add_benchmarks) {
  std::vector<char*> rest;
  const auto read = [](const char* argument, const char* flag, auto& value) {
    const std::size_t length = std::strlen(flag);
    if (std::strncmp(argument, flag, length) != 0) return false;
    value = static_cast<std::remove_reference_t<decltype(value)>>(std::atof(argument + length));
    return true;
  };
  for (int i = 0; i < argc; ++i) {
    if (std::strcmp(argv[i], "--all_configs") == 0) {
      settings.all_configs = true;
    } else if (std::strncmp(argv[i], "--configs=", 10) == 0) {
      settings.all_configs = true;
      settings.configs = argv[i] + 10;
    } else if (!read(argv[i], "--rounds=", settings.rounds) &&
               !read(argv[i], "--graph_tokens=", settings.graph_tokens) &&
               !read(argv[i], "--warm_us=", settings.warm_us) &&
               !read(argv[i], "--sample_us=", settings.sample_us))
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
  add_benchmarks();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace bda_bench

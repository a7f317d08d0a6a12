// One whole attention layer on the GPU, original and decomposed, with the share of each stage.
//
// Each layer is captured as a graph; the layers alternate in one process. A stage's time is that of
// the graph up to and with its kernels less that of the graph before them, in place: so the stages
// add up to the layer, and what overlaps is counted once. Weights and inputs are normal numbers;
// coefficients are too, as their values do not bear on the time.
#include <benchmark/benchmark.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bda/attention/bd_attention.hpp"
#include "bda/cuda_backend.hpp"
#include "bda/linalg/scalar.hpp"  // Eigen's 16-bit types as storage

namespace {

using S = Eigen::bfloat16;
using Layer = bda::BDAttention<bda::CudaBackend<S>>;
using T = bda::CudaBackend<S>::Compute;

template <class Code>
void check(Code code, const char* what) {
  if (static_cast<int>(code) == 0) return;
  std::fprintf(stderr, "%s returned %d\n", what, static_cast<int>(code));
  std::exit(1);
}
void check(const bda::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}
#define CHECK(call) check(call, #call)

struct Model {
  const char* name;
  std::int64_t hidden, heads, q_lora;
};
// DeepSeek-V2-Lite (arXiv 2405.04434) and DeepSeek-V3 (arXiv 2412.19437): latent 512, heads of 128,
// rotary part 64.
constexpr Model kModels[] = {{"DeepSeek-V2-Lite", 2048, 16, 0}, {"DeepSeek-V3", 7168, 128, 1536}};

/// The i-th of a table of normal numbers, times `scale`: drawing each one would take minutes.
class Normals {
 public:
  Normals() : values_(1 << 20) {
    std::mt19937_64 engine(1);
    std::normal_distribution<float> normal;
    for (float& v : values_) v = normal(engine);
  }
  std::vector<S> draw(std::int64_t count, double scale) {
    std::vector<S> out(static_cast<std::size_t>(count));
    for (S& v : out) v = static_cast<S>(static_cast<float>(scale) * next());
    return out;
  }
  bda::Matrix<S> matrix(std::int64_t rows, std::int64_t cols) {
    bda::Matrix<S> m;
    m.rows = rows;
    m.cols = cols;
    m.values = draw(rows * cols, 1 / std::sqrt(static_cast<double>(rows)));
    return m;
  }

 private:
  float next() { return values_[(at_ += 7919) & (values_.size() - 1)]; }
  std::vector<float> values_;
  std::size_t at_ = 0;
};

bda::AttentionWeights<S> make_weights(const Model& model, bool decomposed, Normals& normals) {
  bda::AttentionWeights<S> w;
  bda::AttentionConfig& c = w.config;
  c.heads = c.kv_heads = model.heads;
  c.qk_dim = c.v_dim = 128;
  c.rope_dim = 64;
  c.kv_dim = 512;
  c.query_dim = model.q_lora > 0 ? model.q_lora : model.hidden;
  c.out_dim = model.hidden;
  c.shared_rope_key = true;
  c.rope.frequencies = bda::rope_frequencies(c.rope_dim, 10000.0);
  c.rope.style = bda::RopeStyle::kInterleaved;
  c.scale = 1 / std::sqrt(static_cast<double>(c.head_dim()));
  w.q = normals.matrix(c.query_dim, c.heads * c.head_dim());
  w.o = normals.matrix(c.heads * c.v_dim, c.out_dim);
  for (bda::KvProjection<S>* p : {&w.k, &w.v}) {
    if (decomposed) p->basis = bda::IndexSet::slice(c.kv_dim, 0, 128);
    p->weight = normals.matrix(decomposed ? c.kv_dim - 128 : c.kv_dim, c.heads * 128);
  }
  w.k_rope.weight = normals.matrix(model.hidden, c.rope_dim);
  w.latent.emplace();
  w.latent->kv_a = normals.matrix(model.hidden, c.kv_dim);
  w.latent->kv_norm.assign(static_cast<std::size_t>(c.kv_dim), S(1.0f));
  if (model.q_lora > 0) {
    w.latent->q_a = normals.matrix(model.hidden, model.q_lora);
    w.latent->q_norm.assign(static_cast<std::size_t>(model.q_lora), S(1.0f));
  }
  return w;
}

/// A captured run, cut off after any of its nodes.
class Run {
 public:
  template <class Launch>
  Run(cudaStream_t stream, const Launch& launch) {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch();
    CHECK(cudaStreamEndCapture(stream, &graph));
    const std::vector<cudaGraphNode_t> nodes = in_order(graph);
    for (std::size_t count = 1; count <= nodes.size(); ++count) {
      names.push_back(name_of(nodes[count - 1]));
      cudaGraph_t part = nullptr;
      CHECK(cudaGraphClone(&part, graph));
      for (std::size_t i = nodes.size(); i-- > count;) {
        cudaGraphNode_t node = nullptr;
        CHECK(cudaGraphNodeFindInClone(&node, nodes[i], part));
        CHECK(cudaGraphDestroyNode(node));
      }
      parts.emplace_back();
      CHECK(cudaGraphInstantiate(&parts.back(), part, 0));
      CHECK(cudaGraphDestroy(part));
    }
    CHECK(cudaGraphDestroy(graph));
    us.resize(parts.size());
  }
  ~Run() {
    for (cudaGraphExec_t part : parts) cudaGraphExecDestroy(part);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  std::vector<std::string> names;       // of the kernels
  std::vector<cudaGraphExec_t> parts;   // the first 1, 2, ... nodes
  std::vector<std::vector<double>> us;  // samples of each

 private:
  /// The nodes of a graph captured from one stream: a chain.
  static std::vector<cudaGraphNode_t> in_order(cudaGraph_t graph) {
    std::size_t count = 0, edges = 0;
    CHECK(cudaGraphGetRootNodes(graph, nullptr, &count));
    std::vector<cudaGraphNode_t> nodes(count);
    CHECK(cudaGraphGetRootNodes(graph, nodes.data(), &count));
    CHECK(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &edges));
    std::vector<cudaGraphNode_t> from(edges), to(edges);
    std::vector<cudaGraphEdgeData> data(edges);
    CHECK(cudaGraphGetEdges(graph, from.data(), to.data(), data.data(), &edges));
    std::map<cudaGraphNode_t, cudaGraphNode_t> next;
    for (std::size_t i = 0; i < edges; ++i) next[from[i]] = to[i];
    while (next.contains(nodes.back())) nodes.push_back(next[nodes.back()]);
    return nodes;
  }
  template <class Function>
  static Function driver(const char* name) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    CHECK(cudaGetDriverEntryPointByVersion(name, &function, 12030, cudaEnableDefault, &found));
    CHECK(static_cast<int>(found));
    return reinterpret_cast<Function>(function);
  }
  static std::string name_of(cudaGraphNode_t node) {
    static const auto get_params =
        driver<decltype(&cuGraphKernelNodeGetParams)>("cuGraphKernelNodeGetParams");
    static const auto function_name = driver<decltype(&cuFuncGetName)>("cuFuncGetName");
    static const auto kernel_name = driver<decltype(&cuKernelGetName)>("cuKernelGetName");
    cudaGraphNodeType type{};
    CHECK(cudaGraphNodeGetType(node, &type));
    if (type != cudaGraphNodeTypeKernel) return "memset";
    CUDA_KERNEL_NODE_PARAMS params{};
    CHECK(get_params(node, &params));
    const char* name = nullptr;
    if (params.func != nullptr)
      CHECK(function_name(&name, params.func));
    else
      CHECK(kernel_name(&name, params.kern));
    return name;
  }
};

struct Case {
  const Model& model;
  std::int64_t batch, queries, past;  // past 0: prefill, keys and values formed
  [[nodiscard]] bool decode() const { return past > 0; }
};

/// The stage a kernel belongs to. Products are told apart by their order.
std::vector<std::string> stages(const Case& c, bool decomposed,
                                const std::vector<std::string>& kernels) {
  std::vector<std::string> products;
  if (c.model.q_lora > 0) products.push_back("query_down");
  products.insert(products.end(), {"query", "latent", "rope_key"});
  if (!decomposed) {
    products.push_back(c.decode() ? "absorb" : "keys_values");
    products.push_back(c.decode() ? "expand" : "keys_values");
  }
  products.push_back("output");

  const auto has = [](const std::string& name, std::initializer_list<const char*> parts) {
    return std::any_of(parts.begin(), parts.end(),
                       [&](const char* part) { return name.find(part) != std::string::npos; });
  };
  std::vector<std::string> result;
  std::size_t product = 0;
  bool attended = false;
  for (const std::string& name : kernels) {
    if (has(name, {"rms_norm"})) {
      result.push_back("norms");
    } else if (has(name, {"rotate"})) {
      result.push_back("rope");
    } else if (has(name, {"copy_rows"})) {
      result.push_back(c.decode() ? "copies" : "keys_values");
    } else if (has(name, {"sm90_tile", "sm90_latent", "combine_rows", "rows_kernel"})) {
      result.push_back("attention");
      attended = true;
    } else if (has(name, {"absorbed", "simt_kernel"})) {
      result.push_back(attended ? "expand" : "absorb");
    } else if (has(name, {"bda"})) {
      result.push_back("keys_values");
    } else if (has(name, {"reduce"}) && !result.empty()) {
      result.push_back(result.back());
    } else if (name == "memset") {  // before the product that it is for
      result.push_back(product < products.size() ? products[product] : "unknown");
    } else {
      result.push_back(product < products.size() ? products[product] : "unknown");
      ++product;
    }
  }
  if (product != products.size()) {
    std::fprintf(stderr, "%zu products where %zu were expected:\n", product, products.size());
    for (std::size_t i = 0; i < kernels.size(); ++i)
      std::fprintf(stderr, "  %-12s %s\n", result[i].c_str(), kernels[i].c_str());
    std::exit(1);
  }
  return result;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

void run_layer(benchmark::State& state, const Case& c) {
  Normals normals;
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const std::int64_t rows = c.batch * c.queries;
  const std::vector<S> input = normals.draw(rows * c.model.hidden, 1);
  const bda::cuda::DeviceArray<T> x(input.data(), static_cast<std::int64_t>(input.size()));
  const bda::cuda::DeviceArray<T> out(rows * c.model.hidden);
  const std::array<Layer, 2> layers{Layer(make_weights(c.model, false, normals)),
                                    Layer(make_weights(c.model, true, normals))};
  std::vector<std::unique_ptr<Run>> runs;
  std::vector<Layer::Cache> caches;
  std::vector<bda::cuda::DeviceArray<std::byte>> workspaces;
  caches.reserve(2);
  for (const Layer& layer : layers) {
    Layer::Arguments args;
    args.x = {x.data(), {c.batch, c.queries, c.model.hidden}};
    args.out = {out.data(), {c.batch, c.queries, c.model.hidden}};
    if (c.decode()) {
      args.latent_products = bda::LatentProducts::kAbsorbed;
      caches.push_back(layer.make_cache(c.batch, c.past + c.queries, bda::CacheForm::kLatent));
      Layer::Cache& cache = caches.back();
      const std::int64_t held = c.batch * (c.past + c.queries) * 576;
      const std::vector<S> latents = normals.draw(held, 1);
      CHECK(cudaMemcpy(cache.keys(0, 1).data, latents.data(),
                       static_cast<std::size_t>(held) * sizeof(S), cudaMemcpyHostToDevice));
      cache.set_length(c.past);
    }
    const std::size_t bytes =
        c.decode() ? layer.workspace_size(args, caches.back()) : layer.workspace_size(args);
    workspaces.emplace_back(static_cast<std::int64_t>(bytes));
    const std::span<std::byte> workspace(workspaces.back().data(), bytes);
    const auto launch = [&] {
      if (!c.decode()) return check(layer.run(args, workspace, stream));
      check(layer.run(args, caches.back(), workspace, stream));
      caches.back().truncate(c.past);
    };
    launch();  // cublasLt chooses its algorithms
    CHECK(cudaStreamSynchronize(stream));
    runs.push_back(std::make_unique<Run>(stream, launch));
  }

  cudaEvent_t begin = nullptr, end = nullptr;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  const auto sample = [&](cudaGraphExec_t part) {
    constexpr int kReplays = 4;
    CHECK(cudaGraphLaunch(part, stream));
    CHECK(cudaEventRecord(begin, stream));
    for (int i = 0; i < kReplays; ++i) CHECK(cudaGraphLaunch(part, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    return 1e3 * ms / kReplays;
  };
  for (auto _ : state) {
    for (std::size_t k = std::max(runs[0]->parts.size(), runs[1]->parts.size()); k-- > 0;)
      for (const auto& run : runs)
        if (k < run->parts.size()) run->us[k].push_back(sample(run->parts[k]));
    state.SetIterationTime(runs[1]->us.back().back() * 1e-6);
  }
  double total[2] = {};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::string prefix = i == 0 ? "plain_" : "bda_";
    const std::vector<std::string> stage = stages(c, i == 1, runs[i]->names);
    double before = 0;
    for (std::size_t k = 0; k < stage.size(); ++k) {
      const double now = median(runs[i]->us[k]);
      state.counters[prefix + stage[k] + "_us"] += now - before;
      before = now;
    }
    total[i] = before;
    state.counters[prefix + "us"] = before;
  }
  state.counters["ratio_vs_plain"] = total[0] / total[1];
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device: nothing to measure\n");
    return 0;
  }
  cudaDeviceProp properties{};
  CHECK(cudaGetDeviceProperties(&properties, 0));
  benchmark::AddCustomContext("device", properties.name);
  benchmark::AddCustomContext("cublasLt", std::to_string(cublasLtGetVersion()));
  for (const Model& model : kModels)
    for (const Case& c : {Case{model, 1, 4096, 0}, Case{model, 32, 1, 8192}}) {
      const std::string name = std::string("layer/bf16/") + model.name +
                               (c.decode() ? "/decode/batch:32/context:8192" : "/prefill/M:4096");
      benchmark::RegisterBenchmark(name.c_str(),
                                   [c](benchmark::State& state) { run_layer(state, c); })
          ->UseManualTime()
          ->Iterations(9)
          ->Unit(benchmark::kMicrosecond);
    }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

#include <cuda_runtime_api.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bda/cuda.hpp"
#include "device_buffer.hpp"
#include "reference.hpp"

// The kernels of the attention step; skipped without a GPU.
namespace {

using bda::Status;
using bda::cuda::AttendArguments;
using bda::cuda::AttendConfig;
using bda::cuda::AttendKernel;
using bda::cuda::DeviceInfo;
using bda_test::DeviceBuffer;

struct Case {
  std::int64_t batch = 1, queries = 1, keys = 1, heads = 1, kv_heads = 1, qk = 128, v = 128;
  bool causal = true;
  std::int64_t window = 0;
  bool lengths = false, sinks = false;
  float softcap = 0;
  std::int64_t gap = 0;  // elements between heads of every operand
  bool head_major = false;
  bool latent = false;  // the values are the first channels of the keys
};

std::string describe(const Case& c) {
  const auto n = [](std::int64_t value) { return std::to_string(value) + " "; };
  return "batch " + n(c.batch) + "queries " + n(c.queries) + "keys " + n(c.keys) + "heads " +
         n(c.heads) + "kv_heads " + n(c.kv_heads) + "qk " + n(c.qk) + "v " + n(c.v) + "window " +
         n(c.window) + (c.causal ? "causal " : "") + (c.lengths ? "lengths " : "") +
         (c.sinks ? "sinks " : "") + (c.softcap > 0 ? "softcap " : "") +
         (c.head_major ? "head-major " : "") + (c.latent ? "latent " : "") + "gap " + n(c.gap);
}

template <class T>
struct Problem {
  static constexpr std::int64_t kGuard = 4096;

  explicit Problem(const Case& c, float spread = 1)
      : q(size(c, c.queries, c.heads, c.qk)),
        k(size(c, c.keys, c.kv_heads, c.qk)),
        v(size(c, c.keys, c.kv_heads, c.v)),
        out(2 * kGuard + size(c, c.queries, c.heads, c.v)),
        lengths(length_values(c)),
        sinks(sink_values(c)) {
    args.q = view<const T>(c, q.data, c.queries, c.heads, c.qk);
    args.k = view<const T>(c, k.data, c.keys, c.kv_heads, c.qk);
    args.v = view<const T>(c, v.data, c.keys, c.kv_heads, c.v);
    if (c.latent) {
      args.v = args.k;
      args.v.extents[3] = c.v;
    }
    args.out = view<T>(c, out.data + kGuard, c.queries, c.heads, c.v);
    args.scale = 1 / std::sqrt(static_cast<float>(c.qk));
    args.softcap = c.softcap;
    args.causal = c.causal;
    args.window = c.window;
    if (c.lengths) args.key_lengths = lengths.data;
    if (c.sinks) args.sinks = sinks.data;
    bda_test::fill_normal(q.data, c.batch * c.queries * c.heads, c.qk, c.qk + c.gap, 1, spread);
    bda_test::fill_normal(k.data, c.batch * c.keys * c.kv_heads, c.qk, c.qk + c.gap, 2, spread);
    bda_test::fill_normal(v.data, c.batch * c.keys * c.kv_heads, c.v, c.v + c.gap, 3, 1.0f);
    if (c.lengths && !c.head_major) {  // what no query sees may be anything
      const std::vector<std::int32_t> counts = length_values(c);
      const auto spoil = [&](T* data, std::int64_t width) {
        const std::int64_t token = c.kv_heads * (width + c.gap);
        for (std::int64_t b = 0; b < c.batch; ++b) {
          const std::int64_t seen = counts[static_cast<std::size_t>(b)];
          bda_test::set_bytes(data + (b * c.keys + seen) * token, 0xff,  // NaN
                              static_cast<std::size_t>((c.keys - seen) * token) * sizeof(T));
        }
      };
      spoil(k.data, c.qk);
      spoil(v.data, c.v);
    }
  }

  static std::int64_t size(const Case& c, std::int64_t tokens, std::int64_t heads,
                           std::int64_t width) {
    return c.batch * tokens * heads * (width + c.gap);
  }
  template <class U>
  static bda::TensorView<U, 4> view(const Case& c, U* data, std::int64_t tokens, std::int64_t heads,
                                    std::int64_t width) {
    const std::int64_t step = width + c.gap;
    if (c.head_major)
      return {
          data, {c.batch, tokens, heads, width}, {heads * tokens * step, step, tokens * step, 1}};
    return {data, {c.batch, tokens, heads, width}, {heads * tokens * step, heads * step, step, 1}};
  }
  static std::vector<std::int32_t> length_values(const Case& c) {
    std::vector<std::int32_t> values;
    for (std::int64_t b = 0; b < c.batch; ++b)
      values.push_back(static_cast<std::int32_t>(b % 3 == 1 ? 0 : c.keys - b * 7 % (c.keys + 1)));
    return values;
  }
  static std::vector<float> sink_values(const Case& c) {
    std::vector<float> values;
    for (std::int64_t h = 0; h < c.heads; ++h) values.push_back(static_cast<float>(h % 5) - 1.5f);
    return values;
  }

  Status run(const DeviceInfo& device) {
    DeviceBuffer<std::uint8_t> workspace(static_cast<std::int64_t>(workspace_size(args, device)) +
                                         1);
    const Status status =
        bda::cuda::run(args, device, workspace.data, workspace.bytes() - 1, nullptr);
    REQUIRE_CUDA(cudaDeviceSynchronize());
    return status;
  }
  void check() {
    const bda_test::Comparison c = bda_test::compare_attend<T>(args, out.data, out.size);
    INFO("largest error / bound " << c.worst << ", wrong " << c.wrong << " of " << c.checked);
    CHECK(c.wrong == 0);
    CHECK(c.checked == static_cast<unsigned long long>(args.out.size()));
    CHECK(c.poisoned == static_cast<unsigned long long>(out.size - args.out.size()));
  }

  DeviceBuffer<T> q, k, v, out;
  DeviceBuffer<std::int32_t> lengths;
  DeviceBuffer<float> sinks;
  AttendArguments<T> args;
};

template <class T>
void run_all(const Case& c) {
  const DeviceInfo device = bda::cuda::query_device<T>();
  Problem<T> problem(c);
  for (const AttendConfig& config :
       {AttendConfig{AttendKernel::kRows, 1, "test"}, AttendConfig{AttendKernel::kRows, 3, "test"},
        AttendConfig{AttendKernel::kSm90Tile, 1, "test"},
        AttendConfig{AttendKernel::kSm90Latent, 1, "test"},
        AttendConfig{AttendKernel::kSm90Latent, 3, "test"}}) {
    if (config.kernel == AttendKernel::kSm90Latent && !c.latent) continue;
    if (!validate(config, problem.args.shape(), device).ok()) continue;
    INFO(name_of(config.kernel) << " splits " << config.splits << ", " << describe(c));
    problem.args.force = config;
    problem.out.poison();
    const Status status = problem.run(device);
    INFO(status.message());
    REQUIRE(status.ok());
    problem.check();
  }
}

}  // namespace

TEMPLATE_TEST_CASE("attention agrees with the formula in double", "[gpu][attend]", __half,
                   __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  SECTION("every width, ragged lengths") {
    for (std::int64_t qk : {32, 64, 96, 128, 192})
      for (std::int64_t v : {32, 64, 96, 128, 192})
        if (v <= qk) run_all<T>({2, 77, 77, 2, 2, qk, v});
    run_all<T>({1, 130, 130, 1, 1, 40, 8});
    run_all<T>({1, 9, 9, 1, 1, 8, 8});
  }
  SECTION("more keys than queries and fewer, no mask") {
    for (std::int64_t queries : {1, 3, 64, 129})
      for (std::int64_t keys : {1, 63, 128, 131, 300})
        for (bool causal : {false, true}) run_all<T>({1, queries, keys, 2, 1, 128, 128, causal});
  }
  SECTION("windows, lengths, sinks, softcap, groups") {
    run_all<T>({1, 300, 300, 2, 2, 128, 128, true, 50});
    run_all<T>({1, 140, 400, 2, 1, 64, 64, true, 130});
    run_all<T>({4, 70, 140, 4, 2, 192, 128, true, 0, true});
    run_all<T>({4, 70, 140, 4, 2, 128, 128, false, 0, true, true});
    run_all<T>({2, 5, 200, 6, 2, 96, 64, true, 90, true, true, 20.0f});
    run_all<T>({3, 1, 700, 8, 1, 128, 128, true, 0, true, true});
    run_all<T>({1, 200, 200, 4, 4, 192, 192, true, 0, false, true, 5.0f});
  }
  SECTION("strides") {
    run_all<T>({2, 100, 150, 3, 3, 128, 128, true, 0, false, false, 0, 8});
    run_all<T>({2, 100, 150, 3, 1, 192, 128, true, 0, false, false, 0, 16, true});
  }
  SECTION("latents: values that are part of their keys") {
    const auto latent = [](Case c) {
      c.latent = true;
      run_all<T>(c);
    };
    latent({2, 1, 200, 16, 1, 576, 512});
    latent({1, 1, 63, 128, 1, 576, 512});
    latent({3, 2, 513, 70, 1, 576, 512, true, 0, true});
    latent({1, 3, 130, 6, 1, 288, 256, true, 50, false, true});
    latent({2, 1, 1000, 6, 2, 144, 128, false, 0, true, true, 10.0f});
    latent({1, 40, 40, 3, 1, 320, 256});
    latent({2, 2, 300, 9, 3, 408, 392, true, 100, true, false, 0, 8});
    latent({2, 1, 90, 12, 2, 560, 496, true, 0, false, true, 0, 16, true});
    latent({1, 5, 3, 4, 1, 576, 512});
  }
}

TEMPLATE_TEST_CASE("attention with large scores and no visible key", "[gpu][attend]", __half,
                   __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  const DeviceInfo device = bda::cuda::query_device<TestType>();
  Problem<TestType> large({1, 150, 150, 2, 2, 128, 128}, 6.0f);  // scores of some hundreds
  large.out.poison();
  REQUIRE(large.run(device).ok());
  large.check();
  Problem<TestType> none({1, 10, 4, 2, 2, 64, 64});  // the first six queries see nothing
  none.out.poison();
  REQUIRE(none.run(device).ok());
  none.check();
}

TEMPLATE_TEST_CASE("repeated attention gives the same bits, in a graph too", "[gpu][attend]",
                   __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  for (const Case& c :
       {Case{1, 300, 300, 2, 2, 192, 128}, Case{2, 1, 3000, 4, 2, 128, 128},
        Case{.batch = 2, .keys = 3000, .heads = 70, .qk = 576, .v = 512, .latent = true}}) {
    Problem<T> problem(c);
    DeviceBuffer<std::uint8_t> workspace(
        static_cast<std::int64_t>(workspace_size(problem.args, device)) + 1);
    cudaStream_t stream = nullptr;
    REQUIRE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const auto launch = [&] {
      REQUIRE(run(problem.args, device, workspace.data, workspace.bytes() - 1, stream).ok());
    };
    launch();
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    const auto first = problem.out.host();
    problem.args.dependent_launch = true;
    for (int i = 0; i < 50; ++i) launch();
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    CHECK(bda_test::first_difference(problem.out.host(), first) == -1);
    problem.out.poison();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch();
    REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
    REQUIRE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    REQUIRE_CUDA(cudaGraphLaunch(exec, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    CHECK(bda_test::first_difference(problem.out.host(), first) == -1);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

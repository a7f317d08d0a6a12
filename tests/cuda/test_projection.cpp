#include <cuda_runtime_api.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "bda/cuda.hpp"
#include "device_buffer.hpp"
#include "reference.hpp"

// Plain C++: the kernels are in kernels.cu. Everything here needs a GPU and is skipped without one.
namespace {

using bda::Status;
using bda::TensorView;
using bda::cuda::DeviceInfo;
using bda::cuda::PackedCoefficients;
using bda::cuda::ProjectionArguments;
using bda::cuda::ProjectionConfig;
using bda::cuda::ProjectionKernel;
using bda::cuda::ProjectionShape;

using bda_test::DeviceBuffer;

struct Layout {
  std::int64_t x_gap = 0;    // elements between rows of x beyond kv_dim
  std::int64_t out_gap = 0;  // between tokens of out (or heads, if head-major)
  bool head_major = false;
  bool bias = false;
};

/// A projection with random operands; out lies in a poisoned buffer with guard zones around it, and
/// what surrounds the rows of x is poison too.
template <class T>
struct Problem {
  static constexpr std::int64_t kGuard = 4096;

  Problem(std::int64_t tokens, std::int64_t kv_dim, std::int64_t width, std::int64_t heads,
          std::int64_t basis_begin, const Layout& layout, std::uint64_t seed = 1)
      : plain((kv_dim - width) * heads * width),
        packed(packing_of(kv_dim, width, heads).size()),
        bias(heads * width),
        x(kGuard + (tokens + 130) * (kv_dim + layout.x_gap)),
        out(2 * kGuard + tokens * heads * width + layout.out_gap * (tokens + heads)) {
    args.packing = packing_of(kv_dim, width, heads);
    args.basis_begin = basis_begin;
    args.x = {x.data, {tokens, kv_dim}, {kv_dim + layout.x_gap, 1}};
    args.out = layout.head_major ? TensorView<T, 3>(out.data + kGuard, {tokens, heads, width},
                                                    {width, tokens * width + layout.out_gap, 1})
                                 : TensorView<T, 3>(out.data + kGuard, {tokens, heads, width},
                                                    {heads * width + layout.out_gap, width, 1});
    bda_test::fill_normal(x.data, tokens, kv_dim, kv_dim + layout.x_gap, 3 * seed, 1.0f);
    bda_test::fill_normal(plain.data, kv_dim - width, heads * width, heads * width, 3 * seed + 1,
                          0.05f);
    bda_test::fill_normal(bias.data, 1, heads * width, heads * width, 3 * seed + 2, 1.0f);
    REQUIRE(pack_coefficients_on_device<T>(plain.data, heads * width, args.packing, packed.data,
                                           nullptr)
                .ok());
    args.coefficients = packed.data;
    if (layout.bias) args.bias = bias.data;
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
  static PackedCoefficients packing_of(std::int64_t kv_dim, std::int64_t width,
                                       std::int64_t heads) {
    return {PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, kv_dim - width, heads,
            width};
  }
  void poison() { REQUIRE_CUDA(cudaMemset(out.data, bda_test::kPoison, out.bytes())); }

  void check() {
    const bda_test::Comparison c = bda_test::compare<T>(args, plain.data, out.data, out.size);
    INFO("largest error / bound " << c.worst << ", wrong " << c.wrong << " of " << c.checked);
    CHECK(c.wrong == 0);
    CHECK(c.checked == static_cast<unsigned long long>(args.out.size()));
    // All of out is written and nothing else: outputs are no NaN, so poison means untouched.
    CHECK(c.poisoned == static_cast<unsigned long long>(out.size - args.out.size()));
  }

  DeviceBuffer<T> plain, packed, bias, x, out;
  ProjectionArguments<T> args;
};

std::string describe(const ProjectionConfig& c, const ProjectionShape& s) {
  return std::string(name_of(c.kernel)) + " " + std::to_string(c.tile_tokens) + "x" +
         std::to_string(c.tile_columns) + " splits " + std::to_string(c.splits) + ", tokens " +
         std::to_string(s.tokens) + " d " + std::to_string(s.kv_dim) + " r " +
         std::to_string(s.width) + " n " + std::to_string(s.heads) + " S from " +
         std::to_string(s.basis_begin);
}

template <class T>
void run_and_check(Problem<T>& problem, const DeviceInfo& device) {
  INFO(describe(config_for(problem.args, device), problem.args.shape()));
  problem.poison();
  const Status status = run(problem.args, device, nullptr, 0, nullptr);
  INFO(status.message());
  REQUIRE(status.ok());
  REQUIRE_CUDA(cudaDeviceSynchronize());
  problem.check();
}

/// Every configuration that can compute `shape`; of sm90_small a few splits.
std::vector<ProjectionConfig> all_configs(const ProjectionShape& shape, const DeviceInfo& device) {
  std::vector<ProjectionConfig> configs;
  const auto add = [&](ProjectionKernel kernel, int tokens, int columns, int splits) {
    const ProjectionConfig c{kernel, tokens, columns, splits, "test"};
    if (validate(c, shape, device).ok()) configs.push_back(c);
  };
  add(ProjectionKernel::kSimt, 64, 64, 1);
  add(ProjectionKernel::kSm80, 128, 128, 1);
  add(ProjectionKernel::kSm80Resident, 128, 128, 1);
  add(ProjectionKernel::kSm90Resident, 128, 128, 1);
  add(ProjectionKernel::kSm90Short, 128, 64, 1);
  for (int tokens : {128, 256}) add(ProjectionKernel::kSm90Turns, tokens, 128, 1);
  add(ProjectionKernel::kSm90Wave, 256, 128, 1);
  add(ProjectionKernel::kSm90Wave, 128, 192, 1);
  for (int columns : {128, 192}) add(ProjectionKernel::kSm90Stream, 128, columns, 1);
  add(ProjectionKernel::kSm90Halves, 128, 256, 1);
  for (int tokens : bda::cuda::detail::kSmallTokens)
    for (int columns : {64, 128})
      for (int splits : {1, 2, 3, 5, 8}) add(ProjectionKernel::kSm90Small, tokens, columns, splits);
  return configs;
}

template <class T>
void run_all_configs(std::int64_t tokens, std::int64_t kv_dim, std::int64_t width,
                     std::int64_t heads, std::int64_t begin, const Layout& layout) {
  const DeviceInfo device = bda::cuda::query_device<T>();
  Problem<T> problem(tokens, kv_dim, width, heads, begin, layout,
                     static_cast<std::uint64_t>(tokens * 31 + kv_dim));
  const ProjectionShape shape = problem.args.shape();
  const std::vector<ProjectionConfig> configs = all_configs(shape, device);
  REQUIRE_FALSE(configs.empty());
  for (const ProjectionConfig& config : configs) {
    INFO((layout.bias ? "bias " : "") << (layout.head_major ? "head-major" : ""));
    problem.args.force = config;
    run_and_check(problem, device);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("every kernel agrees with the formula in double", "[gpu][projection]", __half,
                   __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  SECTION("DeepSeek's shape, ragged token counts, S first") {
    for (std::int64_t tokens : {1, 2, 15, 16, 17, 33, 64, 65, 100, 127, 128, 129, 257, 1000})
      run_all_configs<T>(tokens, 512, 128, tokens < 130 ? 16 : 5, 0, {});
  }
  SECTION("more units than multiprocessors: CTAs cross row blocks") {
    run_all_configs<T>(33 * 128 + 5, 512, 128, 16, 384, {});
    run_all_configs<T>(300, 512, 128, 128, 0, {});
    run_all_configs<T>(128, 512, 128, 128, 0, {});
    run_all_configs<T>(2000, 512, 128, 40, 0, {0, 0, false, true});
    run_all_configs<T>(20000, 512, 128, 1, 0, {});  // every unit has new rows
    run_all_configs<T>(10001, 512, 128, 3, 128, {0, 0, false, true});
  }
  SECTION("few chunks, several tiles a CTA") {
    run_all_configs<T>(3000, 136, 128, 13, 8, {0, 0, false, true});
    run_all_configs<T>(3000, 256, 128, 13, 128, {});
    run_all_configs<T>(3000, 320, 128, 13, 64, {0, 8, false, true});
    run_all_configs<T>(3000, 400, 80, 21, 40, {});
  }
  SECTION("tiles in groups of four rows, and what is left of them") {
    run_all_configs<T>(600, 512, 128, 32, 0, {});
    run_all_configs<T>(1001, 512, 128, 60, 128, {0, 0, false, true});
    run_all_configs<T>(1530, 448, 64, 21, 64, {});
    run_all_configs<T>(1402, 1536, 128, 5, 0, {0, 8, false, true});
  }
  SECTION("more tiles than multiprocessors, chunks even and odd") {
    run_all_configs<T>(5000, 768, 64, 13, 0, {0, 0, false, true});
    run_all_configs<T>(4300, 448, 64, 15, 64, {});
    run_all_configs<T>(4500, 1536, 128, 9, 704, {});
    run_all_configs<T>(3000, 576, 128, 13, 0, {0, 8, false, true});
  }
  SECTION("S anywhere, bias, strides, head-major") {
    for (std::int64_t begin : {0, 64, 192, 384})
      run_all_configs<T>(77, 512, 128, 3, begin, {8, 0, false, true});
    run_all_configs<T>(77, 512, 128, 3, 384, {64, 24, false, false});
    run_all_configs<T>(200, 512, 128, 4, 0, {0, 128, true, true});
    run_all_configs<T>(1, 512, 128, 1, 0, {8, 8, false, true});
  }
  SECTION("other widths and depths of the sm_90a kernels") {
    run_all_configs<T>(150, 768, 64, 12, 0, {});
    run_all_configs<T>(150, 768, 64, 5, 704, {0, 0, false, true});
    run_all_configs<T>(150, 1536, 128, 3, 64, {});
    run_all_configs<T>(40, 2048, 128, 2, 1920, {0, 0, true, true});
    run_all_configs<T>(70, 128, 64, 3, 64, {});
    run_all_configs<T>(200, 448, 64, 3, 0, {0, 0, false, true});  // the basis gives up its slot
    run_all_configs<T>(150, 384, 64, 5, 128, {});
    run_all_configs<T>(200, 192, 128, 2, 64, {});
    run_all_configs<T>(700, 2048, 128, 16, 0, {});
  }
  SECTION("everything else") {
    for (std::int64_t width : {8, 32, 80, 96, 192, 256})
      for (std::int64_t begin : {0, 40}) run_all_configs<T>(131, 512, width, 3, begin, {8, 8});
    run_all_configs<T>(129, 136, 128, 1, 8, {0, 0, false, true});
    run_all_configs<T>(3, 520, 128, 2, 392, {0, 0, true, true});
  }
}

TEMPLATE_TEST_CASE("ranges of sm90_resident and sm90_short that differ in length",
                   "[gpu][projection]", __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  const auto force = [&](std::int64_t tokens, std::int64_t heads, const ProjectionConfig& config) {
    Problem<T> p(tokens, 512, 128, heads, 0, {}, 5);
    if (!validate(config, p.args.shape(), device).ok()) SKIP("no sm_90a");
    p.args.force = config;
    run_and_check(p, device);
  };
  const ProjectionConfig resident{ProjectionKernel::kSm90Resident, 128, 128, 1, "test"};
  force(63 * 128 - 3, 66, resident);  // 33 heads where 132 CTAs need 32
  force(12 * 128 - 5, 15, resident);  // two heads and one
  const ProjectionConfig narrow{ProjectionKernel::kSm90Short, 128, 64, 1, "test"};
  force(300, 29, narrow);           // 58 half heads in 29 ranges
  force(20 * 128 - 7, 19, narrow);  // 38 in six
}

TEST_CASE("fp32, any shape and alignment", "[gpu][projection]") {
  SKIP_WITHOUT_DEVICE();
  run_all_configs<float>(67, 101, 13, 5, 7, {3, 5, false, true});
  run_all_configs<float>(1, 512, 128, 2, 384, {});
  run_all_configs<float>(130, 33, 32, 3, 1, {0, 1, true, false});
}

TEMPLATE_TEST_CASE("random shapes through pick", "[gpu][projection]", __half, __nv_bfloat16,
                   float) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  std::mt19937 random(7);
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  for (int i = 0; i < 40; ++i) {
    const std::int64_t step = i % 2 == 0 ? 64 : 8;
    const std::int64_t width = step == 64 ? 64 * draw(1, 2) : 8 * draw(1, 32);
    const std::int64_t rest = step * draw(1, step == 64 ? 16 : 40);
    const std::int64_t begin = step * draw(0, rest / step), heads = draw(1, 20);
    const std::int64_t tokens = i % 3 == 0 ? draw(1, 64) : draw(65, 900);
    Problem<T> p(tokens, rest + width, width, heads, begin,
                 {8 * draw(0, 3), 8 * draw(0, 3), draw(0, 1) == 1, draw(0, 1) == 1},
                 static_cast<std::uint64_t>(100 + i));
    run_and_check(p, device);
  }
}

TEMPLATE_TEST_CASE("random shapes of width 128 over 384 channels through pick", "[gpu][projection]",
                   __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  std::mt19937 random(11);
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  std::set<ProjectionKernel> seen;
  for (int i = 0; i < 30; ++i) {
    const std::int64_t heads = draw(1, 130), begin = 64 * draw(0, 6);
    const std::int64_t tokens = i % 3 == 0 ? draw(900, 4000) : draw(65, 900);
    const Layout layout{8 * draw(0, 3), 8 * draw(0, 3)};
    Problem<T> p(tokens, 512, 128, heads, begin, layout, static_cast<std::uint64_t>(200 + i));
    p.args.dependent_launch = draw(0, 1) == 1;
    seen.insert(config_for(p.args, device).kernel);
    run_and_check(p, device);
  }
  if (device.wgmma)
    for (const auto kernel : {ProjectionKernel::kSm90Short, ProjectionKernel::kSm90Turns,
                              ProjectionKernel::kSm90Resident})
      CHECK(seen.contains(kernel));
}

TEMPLATE_TEST_CASE("host and device pack alike", "[gpu][packing]", __half, __nv_bfloat16, float) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  Problem<T> p(1, 200, 24, 5, 0, {});
  const std::vector<std::uint8_t> plain = p.plain.host();
  const bda::MatrixView<const T> view(reinterpret_cast<const T*>(plain.data()), {176, 120});
  const std::vector<T> packed = bda::cuda::pack_coefficients<T>(view, p.args.packing);
  CHECK(std::memcmp(packed.data(), p.packed.host().data(), p.packed.bytes()) == 0);
}

TEMPLATE_TEST_CASE("200 runs give the same bits", "[gpu][determinism]", __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  for (std::int64_t tokens : {16, 64, 515, 3000}) {
    Problem<T> p(tokens, 512, 128, 16, 0, {0, 0, false, true});
    for (ProjectionConfig config : all_configs(p.args.shape(), device)) {
      if (config.kernel == ProjectionKernel::kSm90Small && tokens > 515) continue;
      if (config.splits == 2) continue;  // another of the splits that are there
      INFO(describe(config, p.args.shape()));
      p.args.force = config;
      REQUIRE(run(p.args, device, nullptr, 0, nullptr).ok());
      const std::vector<std::uint8_t> first = p.out.host();
      DeviceBuffer<T> reference(p.out.size);
      bool same = true;
      for (int i = 0; i < 200; ++i) {
        p.poison();
        REQUIRE(run(p.args, device, nullptr, 0, nullptr).ok());
        if (i % 40 == 39) same = same && p.out.host() == first;
      }
      CHECK(same);
    }
  }
}

TEMPLATE_TEST_CASE("a token's bits do not depend on the other tokens", "[gpu][determinism]", __half,
                   __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  Problem<T> p(300, 512, 128, 6, 64, {0, 0, false, true});
  const std::size_t row = static_cast<std::size_t>(p.args.out.stride(0)) * sizeof(T);
  const std::size_t start = static_cast<std::size_t>(Problem<T>::kGuard) * sizeof(T);
  std::vector<std::uint8_t> unsplit, by_sm80;
  for (const ProjectionConfig& config : all_configs(p.args.shape(), device)) {
    INFO(describe(config, p.args.shape()));
    p.args.force = config;
    p.poison();
    REQUIRE(run(p.args, device, nullptr, 0, nullptr).ok());
    const std::vector<std::uint8_t> together = p.out.host();
    // The tensor-core kernels of sm_90a that do not split start from the basis and add the channels
    // in the same order: the choice among them changes nothing either. So do those of sm_80.
    const bool sm80 = config.kernel == ProjectionKernel::kSm80 ||
                      config.kernel == ProjectionKernel::kSm80Resident;
    if (config.splits == 1) {
      std::vector<std::uint8_t>& like = sm80 ? by_sm80 : unsplit;
      if (like.empty()) like = together;
      CHECK(together == like);
    }
    for (auto [first, count] : {std::pair{0, 1}, {5, 17}, {100, 130}, {299, 1}}) {
      Problem<T> part(count, 512, 128, 6, 64, {0, 0, false, true});
      part.args.coefficients = p.args.coefficients;
      part.args.bias = p.args.bias;
      part.args.x.data = p.args.x.data + first * p.args.x.stride(0);
      part.args.force = config;
      REQUIRE(run(part.args, device, nullptr, 0, nullptr).ok());
      const std::vector<std::uint8_t> alone = part.out.host();
      CHECK(std::memcmp(alone.data() + start,
                        together.data() + start + static_cast<std::size_t>(first) * row,
                        static_cast<std::size_t>(count) * row) == 0);
    }
  }
}

TEMPLATE_TEST_CASE("dependent launches in a chain see each other's results", "[gpu][launch]",
                   __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  // Each launch reads what the one before wrote: out [tokens, 4 * 128] is the next x [tokens, 512].
  for (std::int64_t tokens : {16, 300, 5000}) {
    Problem<T> forward(tokens, 512, 128, 4, 0, {}), backward(tokens, 512, 128, 4, 0, {});
    bda_test::fill_normal(forward.plain.data, 384, 512, 512, 77, 0.04f);  // norms stay about one
    REQUIRE(pack_coefficients_on_device<T>(forward.plain.data, 512, forward.args.packing,
                                           forward.packed.data, nullptr)
                .ok());
    backward.args.coefficients = forward.args.coefficients;
    backward.args.x = {forward.args.out.data, {tokens, 512}};
    for (const ProjectionConfig& config : all_configs(forward.args.shape(), device)) {
      INFO(describe(config, forward.args.shape()));
      forward.args.force = backward.args.force = config;
      const auto chain = [&](bool dependent) {
        Problem<T> fresh(tokens, 512, 128, 4, 0, {});
        REQUIRE_CUDA(
            cudaMemcpy(forward.x.data, fresh.x.data, fresh.x.bytes(), cudaMemcpyDeviceToDevice));
        forward.args.x = {forward.x.data, {tokens, 512}};
        forward.args.dependent_launch = backward.args.dependent_launch = dependent;
        for (int i = 0; i < 5; ++i) {
          REQUIRE(run(forward.args, device, nullptr, 0, nullptr).ok());
          REQUIRE(run(backward.args, device, nullptr, 0, nullptr).ok());
          forward.args.x = {backward.args.out.data, {tokens, 512}};
        }
        REQUIRE_CUDA(cudaDeviceSynchronize());
        return backward.out.host();
      };
      CHECK(chain(true) == chain(false));
    }
  }
}

TEST_CASE("graph capture and two streams", "[gpu][launch]") {
  SKIP_WITHOUT_DEVICE();
  using T = __half;
  const DeviceInfo device = bda::cuda::query_device<T>();
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams)
    REQUIRE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (std::int64_t tokens : {16, 200, 2000}) {
    Problem<T> a(tokens, 512, 128, 16, 0, {}, 1), b(tokens, 512, 128, 16, 384, {}, 2);
    for (const ProjectionConfig& config : all_configs(a.args.shape(), device)) {
      INFO(describe(config, a.args.shape()));
      for (bool dependent : {false, true}) {
        a.args.force = b.args.force = config;
        a.args.dependent_launch = b.args.dependent_launch = dependent;
        a.poison();
        b.poison();
        REQUIRE_CUDA(cudaDeviceSynchronize());
        for (int i = 0; i < 5; ++i) {
          REQUIRE(run(a.args, device, nullptr, 0, streams[0]).ok());
          REQUIRE(run(b.args, device, nullptr, 0, streams[1]).ok());
        }
        REQUIRE_CUDA(cudaDeviceSynchronize());
        a.check();
        b.check();

        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        REQUIRE_CUDA(cudaStreamBeginCapture(streams[0], cudaStreamCaptureModeThreadLocal));
        for (int i = 0; i < 3; ++i) REQUIRE(run(a.args, device, nullptr, 0, streams[0]).ok());
        REQUIRE_CUDA(cudaStreamEndCapture(streams[0], &graph));
        REQUIRE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
        a.poison();
        REQUIRE_CUDA(cudaDeviceSynchronize());
        REQUIRE_CUDA(cudaGraphLaunch(exec, streams[0]));
        REQUIRE_CUDA(cudaStreamSynchronize(streams[0]));
        a.check();
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
      }
    }
  }
  for (cudaStream_t stream : streams) cudaStreamDestroy(stream);
}

TEST_CASE("a refused call launches nothing", "[gpu][errors]") {
  SKIP_WITHOUT_DEVICE();
  const DeviceInfo device = bda::cuda::query_device<__half>();
  Problem<__half> p(10, 512, 128, 2, 0, {});
  p.args.force = ProjectionConfig{ProjectionKernel::kSm80, 64, 64, 1, "test"};
  CHECK(run(p.args, device, nullptr, 0, nullptr).code() == Status::Code::kUnsupported);
  p.args.force.reset();
  p.args.out.strides[0] += 4;
  CHECK(run(p.args, device, nullptr, 0, nullptr).code() == Status::Code::kInvalidArgument);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  for (std::uint8_t byte : p.out.host()) REQUIRE(byte == bda_test::kPoison);
  p.args.out.strides[0] -= 4;
  p.args.x.extents[0] = p.args.out.extents[0] = 0;  // no tokens: nothing to do
  CHECK(run(p.args, device, nullptr, 0, nullptr).ok());
}

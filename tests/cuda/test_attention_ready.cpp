#include <cuda_runtime_api.h>

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "bda/cuda.hpp"
#include "device_buffer.hpp"
#include "reference.hpp"

// Everything here needs a GPU and is skipped without one.
namespace {

using bda::Status;
using bda::cuda::AttentionReadyArguments;
using bda::cuda::AttentionReadyConfig;
using bda::cuda::AttentionReadyKernel;
using bda::cuda::DeviceInfo;
using bda::cuda::KvElement;
using bda::cuda::KvOutput;
using bda::cuda::KvSide;
using bda::cuda::KvStore;
using bda::cuda::PackedCoefficients;
using bda_test::DeviceBuffer;

enum class Order { kTokenMajor, kHeadMajor };
enum class Scale { kNone, kTensor, kHead };

struct SideSpec {
  std::int64_t width = 128, begin = 0;
  Order order = Order::kTokenMajor;
  std::int64_t page = 0;  // tokens; 0: not paged
  std::int64_t gap = 0;   // elements between rows beyond what they need
  KvElement element = KvElement::kSame;
  Scale scale = Scale::kNone;
  bool bias = false;
};

/// One side: its coefficients, and its output in a poisoned buffer with guard zones around it.
template <class T>
struct Side {
  static constexpr std::int64_t kGuard = 4096;

  Side(const SideSpec& spec, std::int64_t tokens, std::int64_t kv_dim, std::int64_t heads,
       std::int64_t rope, std::uint64_t seed)
      : plain((kv_dim - spec.width) * heads * spec.width),
        packed(packing_of(spec, kv_dim, heads).size()),
        bias(heads * spec.width),
        out((2 * kGuard + extent(spec, tokens, heads, rope)) *
            (spec.element == KvElement::kE4m3 ? 1 : static_cast<std::int64_t>(sizeof(T)))),
        elements(2 * kGuard + extent(spec, tokens, heads, rope)) {
    bda_test::fill_normal(plain.data, kv_dim - spec.width, heads * spec.width, heads * spec.width,
                          seed, 0.05f);
    bda_test::fill_normal(bias.data, 1, heads * spec.width, heads * spec.width, seed + 1, 1.0f);
    side.packing = packing_of(spec, kv_dim, heads);
    REQUIRE(pack_coefficients_on_device<T>(plain.data, heads * spec.width, side.packing,
                                           packed.data, nullptr)
                .ok());
    side.coefficients = packed.data;
    side.basis_begin = spec.begin;
    if (spec.bias) side.bias = bias.data;

    const std::int64_t row = spec.width + rope + spec.gap;
    void* data =
        out.data +
        kGuard * (spec.element == KvElement::kE4m3 ? 1 : static_cast<std::int64_t>(sizeof(T)));
    std::mt19937 random(static_cast<unsigned>(seed));
    stored = tokens;
    if (spec.page > 0) {  // scattered over twice the pages needed; every fifth token nowhere
      std::vector<std::int64_t> all(static_cast<std::size_t>(pages(spec, tokens) * spec.page));
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), random);
      all.resize(static_cast<std::size_t>(tokens));
      for (std::size_t t = 3; t < all.size(); t += 5) {
        all[t] = -1;
        --stored;
      }
      slots = std::make_unique<DeviceBuffer<std::int64_t>>(all);
      side.out = spec.order == Order::kTokenMajor
                     ? KvOutput::paged_nhd(data, slots->data, spec.page, heads, row)
                     : KvOutput::paged_hnd(data, slots->data, spec.page, heads, row);
    } else {
      side.out = spec.order == Order::kTokenMajor ? KvOutput::token_major(data, heads, row)
                                                  : KvOutput::head_major(data, tokens, row);
    }
    side.out.element = spec.element;
    if (spec.scale != Scale::kNone) {  // the smallest ones saturate
      std::vector<float> values(static_cast<std::size_t>(heads));
      for (std::size_t h = 0; h < values.size(); ++h)
        values[h] = h % 3 == 1 ? 0.004f : 0.03f + 0.01f * static_cast<float>(h);
      scale = std::make_unique<DeviceBuffer<float>>(values);
      side.out.scale = scale->data;
      side.out.scale_per_head = spec.scale == Scale::kHead;
    }
  }
  static PackedCoefficients packing_of(const SideSpec& spec, std::int64_t kv_dim,
                                       std::int64_t heads) {
    return {PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, kv_dim - spec.width, heads,
            spec.width};
  }
  static std::int64_t pages(const SideSpec& spec, std::int64_t tokens) {
    return 2 * (tokens / spec.page + 1);
  }
  static std::int64_t extent(const SideSpec& spec, std::int64_t tokens, std::int64_t heads,
                             std::int64_t rope) {
    return (spec.page > 0 ? pages(spec, tokens) * spec.page : tokens) * heads *
           (spec.width + rope + spec.gap);
  }
  DeviceBuffer<T> plain, packed, bias;
  DeviceBuffer<std::uint8_t> out;
  std::int64_t elements, stored = 0;
  std::unique_ptr<DeviceBuffer<std::int64_t>> slots;
  std::unique_ptr<DeviceBuffer<float>> scale;
  KvSide<T> side;
};

template <class T>
struct Problem {
  Problem(std::int64_t tokens, std::int64_t kv_dim, std::int64_t heads, std::int64_t rope_width,
          const std::optional<SideSpec>& key_spec, const std::optional<SideSpec>& value_spec,
          std::uint64_t seed = 1)
      : latent(4096 + (tokens + 130) * (kv_dim + 8)), rope((tokens + 1) * (rope_width + 24)) {
    bda_test::fill_normal(latent.data, tokens, kv_dim, kv_dim + 8, 7 * seed, 1.0f);
    args.latent = {latent.data, {tokens, kv_dim}, {kv_dim + 8, 1}};
    if (rope_width > 0) {
      bda_test::fill_normal(rope.data, tokens, rope_width, rope_width + 24, 7 * seed + 1, 1.0f);
      args.rope = {rope.data, {tokens, rope_width}, {rope_width + 24, 1}};
    }
    if (key_spec) {
      key = std::make_unique<Side<T>>(*key_spec, tokens, kv_dim, heads, rope_width, 7 * seed + 2);
      args.key = key->side;
    }
    if (value_spec) {
      value = std::make_unique<Side<T>>(*value_spec, tokens, kv_dim, heads, 0, 7 * seed + 4);
      args.value = value->side;
    }
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
  void poison() {
    if (key) key->out.poison();
    if (value) value->out.poison();
  }
  Status launch(const DeviceInfo& device, cudaStream_t stream = nullptr) {
    const std::size_t bytes = workspace_size(args, device);
    if (bytes > 0 && (!workspace || workspace->bytes() < bytes))
      workspace = std::make_unique<DeviceBuffer<std::uint8_t>>(static_cast<std::int64_t>(bytes));
    return run(args, device, workspace ? workspace->data : nullptr, bytes, stream);
  }
  void check_side(const Side<T>& s, bool is_key, const DeviceInfo& device) {
    const bool through_workspace =
        config_for(args, device).kernel == AttentionReadyKernel::kProjectThenPlace;
    const bda_test::Comparison c =
        bda_test::compare<T>(args, is_key, s.plain.data, s.out.data, s.elements, through_workspace);
    INFO((is_key ? "key" : "value")
         << ": largest error / bound " << c.worst << ", wrong " << c.wrong << " of " << c.checked);
    CHECK(c.wrong == 0);
    const std::int64_t row = s.side.packing.width + (is_key ? args.rope_width() : 0);
    const auto written = static_cast<unsigned long long>(s.stored * s.side.packing.heads * row);
    CHECK(c.checked == written);
    // All of the rows are written and nothing else: outputs are no NaN, so poison means untouched.
    CHECK(c.poisoned == static_cast<unsigned long long>(s.elements) - written);
  }
  void check(const DeviceInfo& device) {
    if (key) check_side(*key, true, device);
    if (value) check_side(*value, false, device);
  }

  DeviceBuffer<T> latent, rope;
  std::unique_ptr<Side<T>> key, value;
  std::unique_ptr<DeviceBuffer<std::uint8_t>> workspace;
  AttentionReadyArguments<T> args;
};

std::vector<AttentionReadyConfig> all_configs(const bda::cuda::AttentionReadyShape& shape,
                                              const DeviceInfo& device) {
  std::vector<AttentionReadyConfig> configs;
  for (KvStore store : {KvStore::kTensor, KvStore::kRows})
    for (AttentionReadyKernel kernel :
         {AttentionReadyKernel::kSm90Resident, AttentionReadyKernel::kProjectThenPlace}) {
      const AttentionReadyConfig c{kernel, store, 128, 128, "test"};
      if (kernel == AttentionReadyKernel::kProjectThenPlace && store == KvStore::kTensor) continue;
      if (validate(c, shape, device).ok()) configs.push_back(c);
    }
  return configs;
}

std::string describe(const AttentionReadyConfig& c) {
  return std::string(name_of(c.kernel)) + " " + name_of(c.store) + ": " + c.why;
}

template <class T>
void run_all_configs(std::int64_t tokens, std::int64_t kv_dim, std::int64_t heads,
                     std::int64_t rope_width, const std::optional<SideSpec>& key,
                     const std::optional<SideSpec>& value) {
  const DeviceInfo device = bda::cuda::query_device<T>();
  Problem<T> problem(tokens, kv_dim, heads, rope_width, key, value,
                     static_cast<std::uint64_t>(tokens * 31 + heads));
  INFO("tokens " << tokens << " d " << kv_dim << " n " << heads << " rope " << rope_width
                 << " picked " << describe(config_for(problem.args, device)));
  for (const AttentionReadyConfig& config : all_configs(problem.args.shape(), device)) {
    INFO(describe(config));
    problem.args.force = config;
    problem.poison();
    const Status status = problem.launch(device);
    INFO(status.message());
    REQUIRE(status.ok());
    REQUIRE_CUDA(cudaDeviceSynchronize());
    problem.check(device);
  }
}

SideSpec side(std::int64_t begin, Order order = Order::kTokenMajor, std::int64_t page = 0,
              std::int64_t gap = 0) {
  SideSpec s;
  s.begin = begin;
  s.order = order;
  s.page = page;
  s.gap = gap;
  return s;
}

SideSpec fp8(SideSpec s, Scale scale) {
  s.element = KvElement::kE4m3;
  s.scale = scale;
  return s;
}

}  // namespace

TEMPLATE_TEST_CASE("keys and values in plain strides", "[gpu][ready]", __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  SECTION("one basis or two, with the rope part, ragged token counts") {
    for (std::int64_t tokens : {1, 5, 16, 127, 128, 129, 300}) {
      run_all_configs<T>(tokens, 512, 16, 64, side(0), side(0));
      run_all_configs<T>(tokens, 512, 5, 64, side(384), side(64));
    }
  }
  SECTION("CTAs cross row blocks and sides") {
    run_all_configs<T>(33 * 128 + 5, 512, 16, 64, side(0), side(384));
    run_all_configs<T>(17 * 128 + 77, 512, 24, 64, side(0), side(0));
    run_all_configs<T>(300, 512, 128, 64, side(128), side(0));
    run_all_configs<T>(515, 512, 128, 64, side(0), side(0));
    run_all_configs<T>(3000, 512, 3, 64, side(0), side(320));
  }
  SECTION("head-major, gaps, rope parts of other widths, one side alone") {
    run_all_configs<T>(200, 512, 7, 64, side(0, Order::kHeadMajor), side(0, Order::kHeadMajor));
    run_all_configs<T>(200, 512, 7, 32, side(0, Order::kTokenMajor, 0, 8),
                       side(64, Order::kHeadMajor, 0, 24));
    run_all_configs<T>(131, 512, 3, 8, side(0), side(0));
    run_all_configs<T>(131, 512, 3, 0, side(0), side(384));
    run_all_configs<T>(131, 512, 1, 64, side(64), std::nullopt);
    run_all_configs<T>(700, 512, 40, 64, side(64), std::nullopt);
    run_all_configs<T>(131, 512, 9, 0, std::nullopt, side(64));
    run_all_configs<T>(1, 512, 1, 64, side(0, Order::kHeadMajor, 0, 8), side(0));
  }
}

TEMPLATE_TEST_CASE("paged keys and values", "[gpu][ready]", __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  for (std::int64_t page : {1, 7, 16, 64})
    for (Order order : {Order::kTokenMajor, Order::kHeadMajor}) {
      run_all_configs<T>(259, 512, 6, 64, side(0, order, page), side(0, order, page));
      run_all_configs<T>(131, 512, 5, 32, side(64, order, page, 8), side(384));  // one side paged
    }
  run_all_configs<T>(2000, 512, 16, 64, side(0, Order::kTokenMajor, 16),
                     side(384, Order::kHeadMajor, 32));
}

TEMPLATE_TEST_CASE("keys and values in e4m3", "[gpu][ready]", __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  for (Scale scale : {Scale::kNone, Scale::kTensor, Scale::kHead}) {
    run_all_configs<T>(300, 512, 6, 64, fp8(side(0), scale), fp8(side(0), scale));
    run_all_configs<T>(2100, 512, 5, 64, fp8(side(0, Order::kHeadMajor), scale),
                       fp8(side(384, Order::kHeadMajor, 0, 16), scale));
    run_all_configs<T>(259, 512, 16, 16, fp8(side(64, Order::kTokenMajor, 16), scale),
                       fp8(side(0, Order::kHeadMajor, 7), scale));
    run_all_configs<T>(65, 512, 3, 64, fp8(side(0), scale), side(0));  // values stay in T
  }
}

TEMPLATE_TEST_CASE("what one launch does not take is projected and placed", "[gpu][ready]", __half,
                   __nv_bfloat16, float) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  SideSpec key, value;
  key.width = 64;
  value.width = 96;
  value.begin = 40;
  value.bias = true;
  for (std::int64_t page : {0, 16})
    for (KvElement element : {KvElement::kSame, KvElement::kE4m3}) {
      key.page = page;
      key.element = value.element = element;
      value.order = page > 0 ? Order::kHeadMajor : Order::kTokenMajor;
      key.scale = Scale::kTensor;
      value.scale = Scale::kHead;
      key.gap = 16;
      run_all_configs<T>(67, 256, 5, 48, key, value);
      run_all_configs<T>(130, 768, 3, 128, key, std::nullopt);
    }
  SideSpec biased = side(0);
  biased.bias = true;
  run_all_configs<T>(200, 512, 4, 64, biased, side(384));
}

TEMPLATE_TEST_CASE("graphs, streams and repeated launches write the same keys and values",
                   "[gpu][ready][launch]", __half, __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams)
    REQUIRE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const SideSpec kinds[3][2] = {
      {side(0), side(384)},
      {side(0, Order::kTokenMajor, 16), side(0, Order::kHeadMajor, 16)},
      {fp8(side(0), Scale::kHead), fp8(side(0), Scale::kTensor)},
  };
  for (const auto& kind : kinds) {
    Problem<T> a(700, 512, 16, 64, kind[0], kind[1], 1), b(300, 512, 20, 64, kind[0], kind[1], 2);
    REQUIRE(a.launch(device).ok());
    REQUIRE_CUDA(cudaDeviceSynchronize());
    const std::vector<std::uint8_t> key = a.key->out.host(), value = a.value->out.host();
    bool same = true;
    for (int i = 0; i < 100; ++i) {
      for (bool dependent : {false, true}) {
        a.args.dependent_launch = b.args.dependent_launch = dependent;
        a.poison();
        REQUIRE_CUDA(cudaDeviceSynchronize());
        for (int j = 0; j < 3; ++j) {
          REQUIRE(a.launch(device, streams[0]).ok());
          REQUIRE(b.launch(device, streams[1]).ok());
        }
        REQUIRE_CUDA(cudaDeviceSynchronize());
        if (i % 10 == 0) same = same && a.key->out.host() == key && a.value->out.host() == value;
      }
    }
    CHECK(same);
    b.check(device);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    REQUIRE_CUDA(cudaStreamBeginCapture(streams[0], cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < 3; ++i) REQUIRE(a.launch(device, streams[0]).ok());
    REQUIRE_CUDA(cudaStreamEndCapture(streams[0], &graph));
    REQUIRE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    a.poison();
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE_CUDA(cudaGraphLaunch(exec, streams[0]));
    REQUIRE_CUDA(cudaStreamSynchronize(streams[0]));
    a.check(device);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }
  for (cudaStream_t stream : streams) cudaStreamDestroy(stream);
}

TEST_CASE("a refused attention-ready call launches nothing", "[gpu][ready][errors]") {
  SKIP_WITHOUT_DEVICE();
  const DeviceInfo device = bda::cuda::query_device<__half>();
  Problem<__half> p(10, 512, 2, 64, fp8(side(0), Scale::kNone), side(0));
  CHECK(run(p.args, device, nullptr, 0, nullptr).code() == Status::Code::kWorkspaceTooSmall);
  p.args.force =
      AttentionReadyConfig{AttentionReadyKernel::kSm90Resident, KvStore::kTensor, 128, 128, "test"};
  CHECK(p.launch(device).code() == Status::Code::kUnsupported);
  p.args.force.reset();
  p.args.key->out.head_stride += 4;
  CHECK(p.launch(device).code() == Status::Code::kInvalidArgument);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  for (std::uint8_t byte : p.key->out.host()) REQUIRE(byte == bda_test::kPoison);
  p.args.key->out.head_stride -= 4;
  p.args.latent.extents[0] = p.args.rope.extents[0] = 0;  // no tokens: nothing to do
  CHECK(p.launch(device).ok());
}

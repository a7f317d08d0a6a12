#include <cuda_runtime_api.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "bda/cuda.hpp"
#include "device_buffer.hpp"
#include "reference.hpp"

// Everything here needs a GPU and is skipped without one.
namespace {

using bda::Status;
using bda::TensorView;
using bda::cuda::AbsorbedArguments;
using bda::cuda::AbsorbedConfig;
using bda::cuda::AbsorbedKernel;
using bda::cuda::AbsorbedProduct;
using bda::cuda::DeviceInfo;
using bda::cuda::PackedCoefficients;
using bda_test::DeviceBuffer;

struct Layout {
  std::int64_t gap = 0;  // elements between rows of x and out beyond what they need
  bool head_major = false;
  bool bias = false;
};

template <class T>
struct Problem {
  static constexpr std::int64_t kGuard = 4096;

  Problem(AbsorbedProduct product, std::int64_t tokens, std::int64_t kv_dim, std::int64_t width,
          std::int64_t heads, std::int64_t begin, const Layout& layout, std::uint64_t seed = 1)
      : plain((kv_dim - width) * heads * width),
        packed(PackedCoefficients{PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype,
                                  kv_dim - width, heads, width}
                   .size()),
        bias(heads * width),
        x(tokens * heads * (x_row(product, kv_dim, width) + layout.gap)),
        out(2 * kGuard + tokens * heads * (x_row(other(product), kv_dim, width) + layout.gap)) {
    args.product = product;
    args.packing = {PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, kv_dim - width,
                    heads, width};
    args.basis_begin = begin;
    const auto view = [&](auto* data, std::int64_t row) {
      using View = TensorView<std::remove_pointer_t<decltype(data)>, 3>;
      const std::int64_t step = row + layout.gap;
      return layout.head_major ? View(data, {tokens, heads, row}, {step, tokens * step, 1})
                               : View(data, {tokens, heads, row}, {heads * step, step, 1});
    };
    args.x = view(x.data, x_row(product, kv_dim, width));
    args.out = view(out.data + kGuard, x_row(other(product), kv_dim, width));
    bda_test::fill_normal(x.data, tokens * heads, args.x.extent(2), args.x.extent(2) + layout.gap,
                          3 * seed, 1.0f);
    bda_test::fill_normal(plain.data, kv_dim - width, heads * width, heads * width, 3 * seed + 1,
                          0.05f);
    bda_test::fill_normal(bias.data, 1, heads * width, heads * width, 3 * seed + 2, 1.0f);
    REQUIRE(pack_coefficients_on_device<T>(plain.data, heads * width, args.packing, packed.data,
                                           nullptr)
                .ok());
    args.coefficients = packed.data;
    if (layout.bias && product == AbsorbedProduct::kOutput) args.bias = bias.data;
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
  static AbsorbedProduct other(AbsorbedProduct product) {
    return product == AbsorbedProduct::kQuery ? AbsorbedProduct::kOutput : AbsorbedProduct::kQuery;
  }
  static std::int64_t x_row(AbsorbedProduct product, std::int64_t kv_dim, std::int64_t width) {
    return product == AbsorbedProduct::kQuery ? width : kv_dim;
  }
  void check() {
    const bda_test::Comparison c = bda_test::compare<T>(args, plain.data, out.data, out.size);
    INFO("largest error / bound " << c.worst << ", wrong " << c.wrong << " of " << c.checked);
    CHECK(c.wrong == 0);
    CHECK(c.checked == static_cast<unsigned long long>(args.out.size()));
    CHECK(c.poisoned == static_cast<unsigned long long>(out.size - args.out.size()));
  }
  DeviceBuffer<T> plain, packed, bias, x, out;
  AbsorbedArguments<T> args;
};

std::string describe(const AbsorbedConfig& c) {
  return std::string(name_of(c.kernel)) + " " + std::to_string(c.tile_tokens) + " tokens, " +
         std::to_string(c.tile_blocks) + " blocks: " + c.why;
}

template <class T>
std::vector<AbsorbedConfig> all_configs(const AbsorbedArguments<T>& args,
                                        const DeviceInfo& device) {
  std::vector<AbsorbedConfig> configs{{AbsorbedKernel::kSimt, 8, 1, "test"}};
  for (int tokens : {16, 32, 64})
    for (int blocks : {1, 2, 3}) {
      const AbsorbedConfig c{AbsorbedKernel::kSm90, tokens, blocks, "test"};
      if (validate(c, args.shape(), device).ok()) configs.push_back(c);
    }
  return configs;
}

template <class T>
void run_all_configs(std::int64_t tokens, std::int64_t kv_dim, std::int64_t width,
                     std::int64_t heads, std::int64_t begin, const Layout& layout) {
  const DeviceInfo device = bda::cuda::query_device<T>();
  for (AbsorbedProduct product : {AbsorbedProduct::kQuery, AbsorbedProduct::kOutput}) {
    Problem<T> problem(product, tokens, kv_dim, width, heads, begin, layout,
                       static_cast<std::uint64_t>(tokens + kv_dim));
    INFO((product == AbsorbedProduct::kQuery ? "query" : "output")
         << " tokens " << tokens << " d " << kv_dim << " r " << width << " n " << heads
         << " S from " << begin << ", picked " << describe(config_for(problem.args, device)));
    for (const AbsorbedConfig& config : all_configs(problem.args, device)) {
      INFO(describe(config));
      problem.out.poison();
      problem.args.force = config;
      const Status status = run(problem.args, device, nullptr, 0, nullptr);
      INFO(status.message());
      REQUIRE(status.ok());
      REQUIRE_CUDA(cudaDeviceSynchronize());
      problem.check();
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("absorbed products agree with the formula in double", "[gpu][absorbed]", __half,
                   __nv_bfloat16, float) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  for (std::int64_t tokens : {1, 7, 16, 17, 33, 64, 65, 256})
    run_all_configs<T>(tokens, 512, 128, 5, 0, {});
  run_all_configs<T>(20, 512, 128, 128, 384, {});
  for (std::int64_t begin : {64, 192})
    for (bool head_major : {false, true})
      run_all_configs<T>(37, 512, 128, 3, begin, {8, head_major, true});
  run_all_configs<T>(19, 256, 64, 4, 64, {0, false, true});
  run_all_configs<T>(5, 768, 192, 1, 0, {});
  run_all_configs<T>(5, 200, 40, 3, 16, {8, false, true});  // simt alone
  run_all_configs<T>(3, 2048, 128, 2, 0, {});
}

TEMPLATE_TEST_CASE("absorbed products in graphs and chains", "[gpu][absorbed][launch]", __half,
                   __nv_bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using T = TestType;
  const DeviceInfo device = bda::cuda::query_device<T>();
  cudaStream_t stream = nullptr;
  REQUIRE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (std::int64_t tokens : {1, 64}) {
    // The output of the query product is the latent-space output of the next one.
    Problem<T> query(AbsorbedProduct::kQuery, tokens, 512, 128, 16, 0, {});
    Problem<T> output(AbsorbedProduct::kOutput, tokens, 512, 128, 16, 384, {});
    output.args.x = query.args.out;
    for (bool dependent : {false, true}) {
      query.args.dependent_launch = output.args.dependent_launch = dependent;
      for (int i = 0; i < 50; ++i) {
        query.out.poison();
        output.out.poison();
        REQUIRE_CUDA(cudaDeviceSynchronize());
        for (int j = 0; j < 3; ++j) {
          REQUIRE(run(query.args, device, nullptr, 0, stream).ok());
          REQUIRE(run(output.args, device, nullptr, 0, stream).ok());
        }
        REQUIRE_CUDA(cudaStreamSynchronize(stream));
        if (i % 10 == 0) {
          query.check();
          output.check();
        }
      }
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t exec = nullptr;
      REQUIRE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      for (int j = 0; j < 3; ++j) {
        REQUIRE(run(query.args, device, nullptr, 0, stream).ok());
        REQUIRE(run(output.args, device, nullptr, 0, stream).ok());
      }
      REQUIRE_CUDA(cudaStreamEndCapture(stream, &graph));
      REQUIRE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
      query.out.poison();
      output.out.poison();
      REQUIRE_CUDA(cudaDeviceSynchronize());
      REQUIRE_CUDA(cudaGraphLaunch(exec, stream));
      REQUIRE_CUDA(cudaStreamSynchronize(stream));
      query.check();
      output.check();
      cudaGraphExecDestroy(exec);
      cudaGraphDestroy(graph);
    }
  }
  cudaStreamDestroy(stream);
}

TEST_CASE("a refused absorbed call launches nothing", "[gpu][absorbed][errors]") {
  SKIP_WITHOUT_DEVICE();
  const DeviceInfo device = bda::cuda::query_device<__half>();
  Problem<__half> p(AbsorbedProduct::kQuery, 10, 512, 128, 2, 0, {});
  p.args.force = AbsorbedConfig{AbsorbedKernel::kSm90, 64, 4, "test"};
  CHECK(run(p.args, device, nullptr, 0, nullptr).code() == Status::Code::kUnsupported);
  p.args.force.reset();
  p.args.out.strides[1] += 4;
  CHECK(run(p.args, device, nullptr, 0, nullptr).code() == Status::Code::kInvalidArgument);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  for (std::uint8_t byte : p.out.host()) REQUIRE(byte == bda_test::kPoison);
}

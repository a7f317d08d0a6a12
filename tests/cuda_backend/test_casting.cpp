#include <cuda_runtime_api.h>

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "bda/attention/bd_attention.hpp"
#include "bda/cuda_backend.hpp"
#include "gpu_layer.hpp"

// A layer of one 16-bit type between activations of the other: what the layer alone gives for the
// cast operands, cast, to the last bit.
namespace {

using namespace bda::testing;
using bda::BDAttention;
using bda::CastingCudaBackend;
using bda::CudaBackend;
using bda::Status;

template <class To, class From>
std::vector<To> cast(const std::vector<From>& values) {
  std::vector<To> out;
  for (const From& v : values) out.push_back(static_cast<To>(static_cast<float>(v)));
  return out;
}

/// Runs `layer` over a cache, in two parts (or, of cross-attention, at once), on the memory given.
template <class Layer, class Storage>
Status run_in_parts(const Layer& layer, const DeviceMemory<Storage>& x,
                    const DeviceMemory<Storage>& context, const DeviceMemory<Storage>& out,
                    std::int64_t batch, std::int64_t tokens, std::int64_t keys) {
  using T = typename Layer::Compute;
  const std::int64_t hidden = layer.weights().hidden_dim(), width = layer.config().out_dim;
  auto cache = layer.make_cache(batch, tokens + keys);
  for (auto [first, count] :
       {std::pair<std::int64_t, std::int64_t>{0, tokens - 3}, {tokens - 3, 3}}) {
    typename Layer::Arguments args;
    args.x = {static_cast<const T*>(x.data) + first * hidden,
              {batch, count, hidden},
              {tokens * hidden, hidden, 1}};
    args.out = {static_cast<T*>(out.data) + first * width,
                {batch, count, width},
                {tokens * width, width, 1}};
    if (keys > 0) {
      args.mask.causal = false;
      args.context = {static_cast<const T*>(context.data),
                      {batch, first == 0 ? keys : 0, layer.weights().context_dim()}};
    }
    const DeviceMemory<std::byte> workspace(layer.workspace_size(args, cache));
    const std::span<std::byte> space(static_cast<std::byte*>(workspace.data), workspace.size);
    if (Status s = layer.run(args, cache, space); !s.ok()) return s;
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
  return {};
}

}  // namespace

TEMPLATE_TEST_CASE("a layer casts what comes in and goes out, and nothing else",
                   "[gpu][cuda_backend][casting]", Eigen::half, Eigen::bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using S = TestType;
  using Outer = std::conditional_t<std::is_same_v<S, Eigen::half>, Eigen::bfloat16, Eigen::half>;
  Random random(3);
  for (const Kind& kind : kinds()) {
    INFO(kind.name);
    const std::int64_t batch = 1, tokens = 37, keys = kind.traits.cross ? 19 : 0;
    const auto weights = make_layer<S>(random, kind);
    const std::vector<Outer> x =
        random_values<Outer>(random, batch * tokens * weights.hidden_dim());
    const std::vector<Outer> context =
        random_values<Outer>(random, batch * keys * weights.context_dim());
    const std::size_t size = static_cast<std::size_t>(batch * tokens * weights.config.out_dim);
    const DeviceMemory<Outer> x_outer(x), context_outer(context), out_outer(size * sizeof(Outer));
    const DeviceMemory<S> x_inner(cast<S>(x)), context_inner(cast<S>(context)),
        out_inner(size * sizeof(S));
    const BDAttention<CastingCudaBackend<Outer, CudaBackend<S>>> casting(weights);
    const BDAttention<CudaBackend<S>> plain(weights);
    const Status a = run_in_parts(casting, x_outer, context_outer, out_outer, batch, tokens, keys);
    const Status b = run_in_parts(plain, x_inner, context_inner, out_inner, batch, tokens, keys);
    INFO(a.message() << " / " << b.message());
    REQUIRE((a.ok() && b.ok()));
    CHECK(out_outer.values() == cast<float>(cast<Outer>(out_inner.values())));
  }
}

TEST_CASE("what a casting layer refuses, it refuses before anything is written",
          "[gpu][cuda_backend][casting]") {
  SKIP_WITHOUT_DEVICE();
  using S = Eigen::half;
  using Layer = BDAttention<CastingCudaBackend<Eigen::bfloat16, CudaBackend<S>>>;
  using T = typename Layer::Compute;
  Random random(4);
  const Layer layer(make_layer<S>(random, kinds()[0]));
  const std::int64_t tokens = 20, hidden = layer.weights().hidden_dim();
  const std::int64_t width = layer.config().out_dim;
  const DeviceMemory<Eigen::bfloat16> x(random_values<Eigen::bfloat16>(random, tokens * hidden));
  const DeviceMemory<Eigen::bfloat16> out(static_cast<std::size_t>(tokens * width) * 2);
  typename Layer::Arguments args;
  args.x = {static_cast<const T*>(x.data), {1, tokens, hidden}};
  args.out = {static_cast<T*>(out.data), {1, tokens, width}};
  const DeviceMemory<std::byte> workspace(layer.workspace_size(args));
  const std::span<std::byte> space(static_cast<std::byte*>(workspace.data), workspace.size);
  const auto untouched = [](const auto& memory) {
    std::vector<unsigned char> bytes(memory.size);
    REQUIRE_CUDA(cudaMemcpy(bytes.data(), memory.data, memory.size, cudaMemcpyDeviceToHost));
    return std::all_of(bytes.begin(), bytes.end(), [](unsigned char b) { return b == 0xff; });
  };
  const auto refused = [&](const char* name, const auto& spoil) {
    typename Layer::Arguments spoiled = args;
    spoil(spoiled);
    const Status status = layer.run(spoiled, space);
    INFO(status.message());
    CHECK(status.message().find(name) != std::string::npos);
    CHECK(untouched(out));
    CHECK(untouched(workspace));
  };
  refused("mask.bias", [&](auto& a) {
    a.mask.bias = {
        static_cast<const T*>(x.data), {layer.config().heads, tokens, tokens}, {0, 0, 1}};
  });
  refused("latent_products", [](auto& a) { a.latent_products = bda::LatentProducts::kAbsorbed; });
  refused("x.stride(1)", [](auto& a) { a.x.strides[1] += 4; });
  refused("x.data", [](auto& a) { a.x.data += 1; });
  refused("out.data", [](auto& a) { a.out.data += 1; });
  refused("out.extent(2)", [](auto& a) { a.out.extents[2] -= 8; });
  CHECK(layer.run(args, space.first(space.size() - 1)).code() == Status::Code::kWorkspaceTooSmall);
  CHECK(layer.run(args, space.subspan(8)).message().find("workspace") != std::string::npos);
  CHECK(untouched(out));
}

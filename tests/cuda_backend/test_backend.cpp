#include <cuda_runtime_api.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "bda/attention/bd_attention.hpp"
#include "bda/cpu/backend.hpp"
#include "bda/cuda_backend.hpp"
#include "cuda/device_buffer.hpp"
#include "gpu_layer.hpp"

// Whole layers on the GPU against the same layers on the CPU in fp32; skipped without a GPU.
namespace {

using namespace bda::testing;
using bda::AttentionWeights;
using bda::BDAttention;
using bda::CacheForm;
using bda::CpuBackend;
using bda::CudaBackend;
using bda::IndexSet;
using bda::Status;

/// The same layer in fp32; with `noise`, every weight off by up to so much of itself.
template <class T>
AttentionWeights<float> widened(const AttentionWeights<T>& w, double noise, Random& random) {
  std::uniform_real_distribution<double> between(-noise, noise);
  const auto vector = [&](const std::vector<T>& values) {
    std::vector<float> out;
    for (const T& v : values)
      out.push_back(static_cast<float>(static_cast<double>(static_cast<float>(v)) *
                                       (1 + between(random.engine()))));
    return out;
  };
  const auto matrix = [&](const bda::Matrix<T>& m) {
    bda::Matrix<float> out(m.rows, m.cols);
    out.values = vector(m.values);
    return out;
  };
  const auto projection = [&](const bda::KvProjection<T>& p) {
    return bda::KvProjection<float>{matrix(p.weight), vector(p.bias), p.basis};
  };
  AttentionWeights<float> out;
  out.config = w.config;
  out.q = matrix(w.q);
  out.q_bias = vector(w.q_bias);
  out.k = projection(w.k);
  out.k_rope = projection(w.k_rope);
  out.v = projection(w.v);
  out.o = matrix(w.o);
  out.o_bias = vector(w.o_bias);
  out.q_head_norm = vector(w.q_head_norm);
  out.k_head_norm = vector(w.k_head_norm);
  out.head_norm_epsilon = w.head_norm_epsilon;
  out.sinks = w.sinks;
  if (w.latent)
    out.latent = bda::LatentProjection<float>{matrix(w.latent->kv_a), vector(w.latent->kv_norm),
                                              matrix(w.latent->q_a), vector(w.latent->q_norm),
                                              w.latent->norm_epsilon};
  return out;
}

std::vector<float> run_on_cpu(const AttentionWeights<float>& weights, const std::vector<float>& x,
                              const std::vector<float>& context, std::int64_t batch,
                              std::int64_t tokens, std::int64_t keys, bool causal) {
  const BDAttention<CpuBackend<float>> layer(weights);
  std::vector<float> out(static_cast<std::size_t>(batch * tokens * weights.config.out_dim));
  bda::AttentionArguments<float> args;
  args.x = {x.data(), {batch, tokens, weights.hidden_dim()}};
  if (!context.empty()) args.context = {context.data(), {batch, keys, weights.context_dim()}};
  args.out = {out.data(), {batch, tokens, weights.config.out_dim}};
  args.mask.causal = causal;
  std::vector<std::byte> workspace(layer.workspace_size(args));
  REQUIRE(layer.run(args, workspace).ok());
  return out;
}

/// Root mean square of a - b over that of b, the worst of all rows.
double distance(const std::vector<float>& a, const std::vector<float>& b, std::int64_t width) {
  double worst = 0, total = 0;
  for (float v : b) total += static_cast<double>(v) * v;
  const double typical = total / static_cast<double>(b.size()) * static_cast<double>(width);
  for (std::size_t row = 0; row < a.size(); row += static_cast<std::size_t>(width)) {
    double off = 0;
    for (std::size_t i = row; i < row + static_cast<std::size_t>(width); ++i)
      off += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    if (!(off <= 1e300)) return 1e300;  // NaN
    worst = std::max(worst, std::sqrt(off / typical));
  }
  return worst;
}

template <class S>
std::vector<float> wide(const std::vector<S>& values, double noise, Random& random) {
  std::uniform_real_distribution<double> between(-noise, noise);
  std::vector<float> out;
  for (const S& v : values)
    out.push_back(static_cast<float>(static_cast<double>(static_cast<float>(v)) *
                                     (1 + between(random.engine()))));
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("layers on the GPU agree with the CPU's", "[gpu][cuda_backend]", Eigen::half,
                   Eigen::bfloat16) {
  SKIP_WITHOUT_DEVICE();
  using S = TestType;
  using Memory = DeviceMemory<S>;
  using Layer = BDAttention<CudaBackend<S>>;
  using T = typename CudaBackend<S>::Compute;
  Random random(7);
  const double unit = bda::StorageTraits<S>::unit_roundoff;
  for (const Kind& kind : kinds()) {
    INFO(kind.name);
    const AttentionWeights<S> weights = make_layer<S>(random, kind);
    const std::int64_t batch = 2, tokens = 41, keys = kind.traits.cross ? 23 : tokens;
    const std::vector<S> x = random_values<S>(random, batch * tokens * weights.hidden_dim());
    const std::vector<S> context =
        kind.traits.cross ? random_values<S>(random, batch * keys * weights.context_dim())
                          : std::vector<S>();
    const bool causal = !kind.traits.cross;
    const std::vector<float> exact =
        run_on_cpu(widened(weights, 0, random), wide(x, 0, random), wide(context, 0, random), batch,
                   tokens, keys, causal);
    // How far the result moves when every weight and every input is off by a rounding. The GPU
    // rounds six times on the way to its result (queries, keys and values, weights of the softmax,
    // their sum, out; the latent), each time as much as that.
    const std::vector<float> disturbed =
        run_on_cpu(widened(weights, unit, random), wide(x, unit, random),
                   wide(context, unit, random), batch, tokens, keys, causal);
    const double bound = 6 * distance(disturbed, exact, weights.config.out_dim) + 2 * unit;
    REQUIRE(bound < 0.5);

    const Layer layer(weights);
    const Memory device_x(x), device_context(context);
    Memory out(exact.size() * sizeof(S));
    typename Layer::Arguments args;
    args.x = {static_cast<const T*>(device_x.data), {batch, tokens, weights.hidden_dim()}};
    if (kind.traits.cross)
      args.context = {static_cast<const T*>(device_context.data),
                      {batch, keys, weights.context_dim()}};
    args.out = {static_cast<T*>(out.data), {batch, tokens, weights.config.out_dim}};
    args.mask.causal = causal;
    const Memory workspace(layer.workspace_size(args));
    const std::span<std::byte> space(static_cast<std::byte*>(workspace.data), workspace.size);
    const Status status = layer.run(args, space);
    INFO(status.message());
    REQUIRE(status.ok());
    REQUIRE_CUDA(cudaDeviceSynchronize());
    const double error = distance(out.values(), exact, weights.config.out_dim);
    INFO("error " << error << ", bound " << bound);
    CHECK(error <= bound);
    if (kind.traits.cross) continue;

    const bool absorbable =
        kind.traits.latent && kind.traits.k_basis != BasisKind::kScattered && !kind.traits.biases;
    if (absorbable) {  // two more roundings: of the absorbed queries and of the summed latents
      bda_test::set_bytes(out.data, 0xff, out.size);
      typename Layer::Arguments absorbed = args;
      absorbed.latent_products = bda::LatentProducts::kAbsorbed;
      const Memory more(layer.workspace_size(absorbed));
      const Status s =
          layer.run(absorbed, std::span(static_cast<std::byte*>(more.data), more.size));
      INFO(s.message());
      REQUIRE(s.ok());
      REQUIRE_CUDA(cudaDeviceSynchronize());
      const double absorbed_error = distance(out.values(), exact, weights.config.out_dim);
      INFO("error absorbed " << absorbed_error << ", bound " << bound);
      CHECK(absorbed_error <= bound * 8 / 6);
    }

    // In parts over a cache: a first part, then token by token.
    struct Way {
      CacheForm form;
      bda::LatentProducts products;
      const char* name;
    };
    std::vector<Way> ways{
        {CacheForm::kMaterialized, bda::LatentProducts::kMaterialized, "keys and values"}};
    if (kind.traits.latent)
      ways.push_back({CacheForm::kLatent, bda::LatentProducts::kMaterialized, "latents"});
    if (absorbable)
      ways.push_back({CacheForm::kLatent, bda::LatentProducts::kAbsorbed, "latents, absorbed"});
    for (const Way& way : ways) {
      INFO("cache of " << way.name);
      auto cache = layer.make_cache(batch, tokens + 3, way.form);
      Memory part_out(exact.size() * sizeof(S));
      for (std::int64_t first = 0, count = 36; first < tokens; first += count, count = 1) {
        typename Layer::Arguments part;
        Memory part_x(static_cast<std::size_t>(batch * count * weights.hidden_dim()) * sizeof(S));
        Memory part_result(static_cast<std::size_t>(batch * count * weights.config.out_dim) *
                           sizeof(S));
        const auto copy = [&](void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t bytes) {
          REQUIRE_CUDA(cudaMemcpy2D(to, to_pitch, from, from_pitch, bytes,
                                    static_cast<std::size_t>(batch), cudaMemcpyDeviceToDevice));
        };
        const auto row = [&](std::int64_t n, std::int64_t width) {
          return static_cast<std::size_t>(n * width) * sizeof(S);
        };
        copy(part_x.data, row(count, weights.hidden_dim()),
             static_cast<const std::byte*>(device_x.data) + row(first, weights.hidden_dim()),
             row(tokens, weights.hidden_dim()), row(count, weights.hidden_dim()));
        part.x = {static_cast<const T*>(part_x.data), {batch, count, weights.hidden_dim()}};
        part.out = {static_cast<T*>(part_result.data), {batch, count, weights.config.out_dim}};
        part.latent_products = way.products;
        const Memory part_workspace(layer.workspace_size(part, cache));
        const Status s =
            layer.run(part, cache,
                      std::span(static_cast<std::byte*>(part_workspace.data), part_workspace.size));
        INFO(s.message());
        REQUIRE(s.ok());
        REQUIRE_CUDA(cudaDeviceSynchronize());
        copy(static_cast<std::byte*>(part_out.data) + row(first, weights.config.out_dim),
             row(tokens, weights.config.out_dim), part_result.data,
             row(count, weights.config.out_dim), row(count, weights.config.out_dim));
      }
      REQUIRE(cache.length() == tokens);
      const double cached_error = distance(part_out.values(), exact, weights.config.out_dim);
      INFO("error with a cache " << cached_error);
      CHECK(cached_error <= bound * 8 / 6);
    }
  }
}

TEST_CASE("padded sequences on the GPU give what they give alone", "[gpu][cuda_backend]") {
  SKIP_WITHOUT_DEVICE();
  using S = Eigen::half;
  using Memory = DeviceMemory<S>;
  using Layer = BDAttention<CudaBackend<S>>;
  using T = typename CudaBackend<S>::Compute;
  Random random(5);
  const AttentionWeights<S> weights = make_layer<S>(random, kinds()[3]);
  const Layer layer(weights);
  const std::int64_t batch = 3, tokens = 70, width = weights.config.out_dim;
  const std::int64_t lengths[batch] = {70, 1, 33};
  const std::vector<S> x = random_values<S>(random, batch * tokens * weights.hidden_dim());
  const Memory device_x(x);
  for (const bda::LatentProducts products :
       {bda::LatentProducts::kMaterialized, bda::LatentProducts::kAbsorbed}) {
    Memory out(static_cast<std::size_t>(batch * tokens * width) * sizeof(S)), alone(out.size);
    typename Layer::Arguments args;
    args.x = {static_cast<const T*>(device_x.data), {batch, tokens, weights.hidden_dim()}};
    args.out = {static_cast<T*>(out.data), {batch, tokens, width}};
    args.latent_products = products;
    args.mask.causal = false;
    args.mask.key_lengths = lengths;
    const Memory workspace(layer.workspace_size(args));
    const std::span<std::byte> space(static_cast<std::byte*>(workspace.data), workspace.size);
    const Status status = layer.run(args, space);
    INFO(status.message());
    REQUIRE(status.ok());
    for (std::int64_t b = 0; b < batch; ++b) {
      typename Layer::Arguments one = args;
      one.mask.key_lengths = nullptr;
      one.x = {args.x.data + b * tokens * weights.hidden_dim(),
               {1, lengths[b], weights.hidden_dim()}};
      one.out = {static_cast<T*>(alone.data) + b * tokens * width, {1, lengths[b], width}};
      REQUIRE(layer.run(one, space).ok());
    }
    REQUIRE_CUDA(cudaDeviceSynchronize());
    const std::vector<float> together = out.values(), apart = alone.values();
    for (std::int64_t b = 0; b < batch; ++b) {
      // The same sums over the same keys, but other tiles of tokens: a few roundings apart.
      const auto part = [&](const std::vector<float>& all) {
        const auto first = all.begin() + b * tokens * width;
        return std::vector<float>(first, first + lengths[b] * width);
      };
      CHECK(distance(part(together), part(apart), width) <=
            8 * bda::StorageTraits<S>::unit_roundoff);
    }
  }
}

TEST_CASE("a layer in a graph, two layers on two streams, and what is refused",
          "[gpu][cuda_backend]") {
  SKIP_WITHOUT_DEVICE();
  using S = Eigen::half;
  using Memory = DeviceMemory<S>;
  using Layer = BDAttention<CudaBackend<S>>;
  using T = typename CudaBackend<S>::Compute;
  Random random(11);
  const AttentionWeights<S> weights = make_layer<S>(random, kinds()[3]);
  const Layer layer(weights), other(weights);
  const std::int64_t batch = 1, tokens = 150, width = weights.config.out_dim;
  const Memory x(random_values<S>(random, tokens * weights.hidden_dim()));
  Memory out(static_cast<std::size_t>(tokens * width) * sizeof(S)), other_out(out.size);
  typename Layer::Arguments args;
  args.x = {static_cast<const T*>(x.data), {batch, tokens, weights.hidden_dim()}};
  args.out = {static_cast<T*>(out.data), {batch, tokens, width}};
  typename Layer::Arguments other_args = args;
  other_args.out.data = static_cast<T*>(other_out.data);
  const Memory workspace(layer.workspace_size(args)), other_workspace(workspace.size);
  const std::span<std::byte> space(static_cast<std::byte*>(workspace.data), workspace.size);
  const std::span<std::byte> other_space(static_cast<std::byte*>(other_workspace.data),
                                         other_workspace.size);
  cudaStream_t streams[2];
  for (cudaStream_t& s : streams)
    REQUIRE_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  REQUIRE(layer.run(args, space, streams[0]).ok());
  REQUIRE_CUDA(cudaStreamSynchronize(streams[0]));
  const std::vector<float> first = out.values();
  for (int i = 0; i < 20; ++i) {
    REQUIRE(layer.run(args, space, streams[0]).ok());
    REQUIRE(other.run(other_args, other_space, streams[1]).ok());
  }
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(out.values() == first);
  CHECK(other_out.values() == first);

  bda_test::set_bytes(out.data, 0xff, out.size);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  REQUIRE_CUDA(cudaStreamBeginCapture(streams[0], cudaStreamCaptureModeThreadLocal));
  REQUIRE(layer.run(args, space, streams[0]).ok());
  REQUIRE_CUDA(cudaStreamEndCapture(streams[0], &graph));
  REQUIRE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  REQUIRE_CUDA(cudaGraphLaunch(exec, streams[0]));
  REQUIRE_CUDA(cudaStreamSynchronize(streams[0]));
  CHECK(out.values() == first);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  for (cudaStream_t s : streams) cudaStreamDestroy(s);

  const auto refused = [&](const char* name, const auto& spoil) {
    typename Layer::Arguments spoiled = args;
    spoil(spoiled);
    const Status status = layer.run(spoiled, space);
    INFO(status.message());
    CHECK(status.message().find(name) != std::string::npos);
  };
  refused("mask.bias", [&](auto& a) {
    a.mask.bias = {
        static_cast<const T*>(x.data), {weights.config.heads, tokens, tokens}, {0, 0, 1}};
  });
  refused("x.stride(1)", [](auto& a) { a.x.strides[1] += 4; });
  refused("x.data", [](auto& a) { a.x.data += 1; });
  refused("out.extent(2)", [](auto& a) { a.out.extents[2] -= 8; });
  const Status small = layer.run(args, space.first(space.size() - 1));
  CHECK(small.code() == Status::Code::kWorkspaceTooSmall);
  const Layer no_latent(make_layer<S>(random, kinds()[0]));
  CHECK_THROWS_AS(no_latent.make_cache(1, 10, CacheForm::kLatent), bda::Error);
  auto held = layer.make_cache(1, 200);
  typename Layer::Arguments absorbed = args;
  absorbed.latent_products = bda::LatentProducts::kAbsorbed;
  CHECK(layer.run(absorbed, held, space).message().find("latent_products") != std::string::npos);
  auto cache = layer.make_cache(1, 100);
  CHECK(layer.run(args, cache, space).message().find("cache.capacity") != std::string::npos);
  auto foreign = other.make_cache(1, 200);
  CHECK_FALSE(layer.run(args, foreign, space).ok());
}

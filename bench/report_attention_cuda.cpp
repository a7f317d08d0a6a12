// The first layer's attention of trained models on the GPU, original and decomposed, keys and
// values formed or absorbed, against what another implementation recorded in double precision.
//
//   report_attention_cuda MODEL_DIR REFERENCE.safetensors [MODEL_DIR REFERENCE.safetensors ...]
//
// REFERENCE holds layer0_attention_input and layer0_attention_output, [tokens, hidden]. An error is
// the distance of a token's output from the reference, relative to the typical length of one; the
// bound is the same on the CPU in float when every weight and input moves by the type's unit
// roundoff, times the six roundings on the GPU's way to its result (queries, keys and values, the
// softmax's weights, their sum, the latent, the output; eight where queries and sums pass through
// the latent), and two for the stored result.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <iostream>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bda/attention/bd_attention.hpp"
#include "bda/checkpoint/load.hpp"
#include "bda/cpu/backend.hpp"
#include "bda/cuda_backend.hpp"
#include "bda/preparation/prepare.hpp"

namespace {

struct Sample {
  std::int64_t tokens = 0, hidden = 0;
  std::vector<double> input, output;
};

Sample read_sample(const std::filesystem::path& path) {
  const bda::checkpoint::SafetensorsFile file(path);
  const bda::checkpoint::Tensor& input = file.at("layer0_attention_input");
  Sample s;
  s.tokens = input.shape.at(0);
  s.hidden = input.shape.at(1);
  s.input = bda::checkpoint::read_values<double>(input);
  s.output = bda::checkpoint::read_values<double>(file.at("layer0_attention_output"));
  return s;
}

/// The largest distance of a row of `a` from that of `b`, relative to a typical row of `b`.
template <class A, class B>
double distance(const std::vector<A>& a, const std::vector<B>& b, std::int64_t width) {
  double total = 0, worst = 0;
  for (const B& v : b) total += static_cast<double>(v) * static_cast<double>(v);
  const double typical = total / static_cast<double>(b.size()) * static_cast<double>(width);
  for (std::size_t row = 0; row < a.size(); row += static_cast<std::size_t>(width)) {
    double off = 0;
    for (std::size_t i = row; i < row + static_cast<std::size_t>(width); ++i)
      off += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    worst = off <= typical * 1e30 ? std::max(worst, off) : HUGE_VAL;  // NaN too
  }
  return std::sqrt(worst / typical);
}

std::vector<float> on_cpu(const bda::AttentionWeights<float>& weights, const Sample& s,
                          const std::vector<float>& x) {
  const bda::BDAttention<bda::CpuBackend<float>> layer(weights);
  std::vector<float> out(s.output.size());
  bda::AttentionArguments<float> args;
  args.x = {x.data(), {1, s.tokens, s.hidden}};
  args.out = {out.data(), {1, s.tokens, s.hidden}};
  std::vector<std::byte> workspace(layer.workspace_size(args));
  if (const bda::Status status = layer.run(args, workspace); !status.ok())
    throw bda::Error("the CPU", "success", status.message());
  return out;
}

/// How far the output moves when every weight and input moves by up to `unit` of itself.
double sensitivity(bda::AttentionWeights<float> weights, const Sample& s, double unit) {
  std::vector<float> x(s.input.begin(), s.input.end());
  const std::vector<float> before = on_cpu(weights, s, x);
  std::mt19937_64 engine(1);
  std::uniform_real_distribution<double> between(-unit, unit);
  const auto move = [&](std::vector<float>& values) {
    for (float& v : values) v = static_cast<float>(v * (1 + between(engine)));
  };
  for (auto* values :
       {&x, &weights.q.values, &weights.q_bias, &weights.k.weight.values, &weights.k.bias,
        &weights.k_rope.weight.values, &weights.k_rope.bias, &weights.v.weight.values,
        &weights.v.bias, &weights.o.values, &weights.o_bias})
    move(*values);
  if (weights.latent)
    for (auto* values : {&weights.latent->kv_a.values, &weights.latent->kv_norm,
                         &weights.latent->q_a.values, &weights.latent->q_norm})
      move(*values);
  return distance(on_cpu(weights, s, x), before, s.hidden);
}

template <class S>
std::vector<S> on_gpu(const bda::BDAttention<bda::CudaBackend<S>>& layer, const Sample& s,
                      bda::LatentProducts products) {
  using T = typename bda::CudaBackend<S>::Compute;
  std::vector<S> x(s.input.size()), out(s.output.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<S>(static_cast<float>(s.input[i]));
  const auto count = static_cast<std::int64_t>(x.size());
  const bda::cuda::DeviceArray<T> device_x(x.data(), count), device_out(count);
  bda::AttentionArguments<T> args;
  args.x = {device_x.data(), {1, s.tokens, s.hidden}};
  args.out = {device_out.data(), {1, s.tokens, s.hidden}};
  args.latent_products = products;
  const bda::cuda::DeviceArray<std::byte> workspace(
      static_cast<std::int64_t>(layer.workspace_size(args)));
  if (const bda::Status status = layer.run(args, {workspace.data(), workspace.bytes()});
      !status.ok())
    throw bda::Error("the GPU", "success", status.message());
  if (cudaMemcpy(out.data(), device_out.data(), device_out.bytes(), cudaMemcpyDeviceToHost) !=
      cudaSuccess)
    throw bda::Error("cudaMemcpy", "success", cudaGetErrorString(cudaGetLastError()));
  return out;
}

/// Whether every error is within its bound.
template <class S>
bool measure(const std::string& model, const bda::AttentionWeights<float>& original,
             const Sample& s, const char* type) {
  bool within = true;
  const double unit = bda::StorageTraits<S>::unit_roundoff;
  bda::PreparationOptions options;
  options.sides.qk = original.config.qk_dim > 0;  // exact only without a rotation
  for (const bool decomposed : {false, true}) {
    const bda::AttentionWeights<S> weights =
        decomposed ? bda::prepare<S>(original, options).weights : bda::convert<S>(original);
    const double moved = sensitivity(bda::convert<float>(weights), s, unit);
    const bda::BDAttention<bda::CudaBackend<S>> layer(weights);
    for (const bda::LatentProducts products :
         {bda::LatentProducts::kMaterialized, bda::LatentProducts::kAbsorbed}) {
      const bool absorbed = products == bda::LatentProducts::kAbsorbed;
      if (absorbed && !weights.latent) continue;
      const double error = distance(on_gpu<S>(layer, s, products), s.output, s.hidden);
      const double bound = (absorbed ? 8 : 6) * moved + 2 * unit;
      within = within && error <= bound;
      std::printf("| %s | %s | %s | %s | %.2e | %.2e | %s |\n", model.c_str(), type,
                  decomposed ? "decomposed" : "original", absorbed ? "absorbed" : "formed", error,
                  bound, error <= bound ? "yes" : "NO");
    }
  }
  return within;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3 || argc % 2 == 0) {
    std::fprintf(stderr, "usage: %s MODEL_DIR REFERENCE.safetensors [...]\n", argv[0]);
    return 2;
  }
  std::printf(
      "| model | type | weights | keys and values | largest error of a token | bound | within |\n"
      "| --- | --- | --- | --- | ---: | ---: | --- |\n");
  bool within = true;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::filesystem::path folder = argv[i];
    const auto original =
        bda::checkpoint::load_attention_layer<float>(bda::checkpoint::open_checkpoint(folder), 0);
    const Sample sample = read_sample(argv[i + 1]);
    const std::string name = folder.filename().string();
    within = measure<Eigen::half>(name, original, sample, "fp16") && within;
    within = measure<Eigen::bfloat16>(name, original, sample, "bf16") && within;
  }
  return within ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}

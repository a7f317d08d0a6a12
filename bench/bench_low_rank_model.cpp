// A whole language model whose attention and MLP weights were truncated: as factor pairs against
// basis-decomposed, one thread, float, alternating window by window.
//
//     bench_low_rank_model WINDOWS OUT.json MODEL_DIR EVAL.safetensors [...]
//
// Every weight of every layer (but the rope key, which is shared by all heads and small) is
// truncated to half of its smaller dimension by SVD. Nothing is trained afterwards, so perplexity
// is what such a truncation does to these models; both forms compute the same function.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "../examples/perplexity/evaluation_set.hpp"
#include "../examples/perplexity/model_size.hpp"
#include "bda/checkpoint/load.hpp"
#include "bda/linear.hpp"
#include "open_model.hpp"
#include "single_thread_time.hpp"

namespace {

namespace linear = bda::linear;
using Model = bda_bench::OpenModel<float>;
using Key = std::pair<std::int64_t, std::string>;

struct Layers {
  std::map<Key, linear::BasisLinear<float>> basis;
  std::map<Key, linear::FactorLinear<float>> factors;
  std::int64_t basis_bytes = 0, factor_bytes = 0, dense_bytes = 0;
};

/// gate and up leave their outputs basis first, over a common basis; down takes them so.
class Truncation {
 public:
  explicit Truncation(const bda::checkpoint::TransformerWeights<float>& weights) {
    for (std::size_t i = 0; i < weights.layers.size(); ++i) {
      layer_ = static_cast<std::int64_t>(i);
      const auto& a = weights.layers[i].attention;
      if (a.latent) add("kv_a", a.latent->kv_a);
      add("q", a.q);
      add("k", a.k.weight);
      add("v", a.v.weight);
      add("o", a.o);
      const auto& mlp = std::get<bda::checkpoint::GatedMlp<float>>(weights.layers[i].mlp);
      const linear::FactorPair pairs[] = {truncated(mlp.gate.weight), truncated(mlp.up.weight)};
      auto group = linear::prepare_group<float>(pairs);
      const auto order = linear::output_order(group.weights[0]);
      place("gate", pairs[0], std::move(group.weights[0]), linear::OutputOrder::kBasisFirst);
      place("up", pairs[1], std::move(group.weights[1]), linear::OutputOrder::kBasisFirst);
      const linear::FactorPair down = truncated(mlp.down.weight);
      place("down", down, linear::with_inputs_in(linear::prepare<float>(down).weights[0], order),
            linear::OutputOrder::kNatural);
    }
  }
  [[nodiscard]] const Layers& layers() const { return layers_; }

 private:
  linear::FactorPair truncated(const bda::Matrix<float>& w) {
    layers_.dense_bytes += w.bytes();
    return linear::truncate(bda::linalg::map(w).cast<double>(),
                            linear::RankTarget{std::min(w.rows, w.cols) / 2})
        .factors;
  }
  void add(const std::string& name, const bda::Matrix<float>& w) {
    const linear::FactorPair pair = truncated(w);
    place(name, pair, linear::prepare<float>(pair).weights[0], linear::OutputOrder::kNatural);
  }
  void place(const std::string& name, const linear::FactorPair& pair,
             linear::BasisWeights<float> basis, linear::OutputOrder order) {
    linear::FactorWeights<float> factors = linear::factor_weights<float>(pair);
    layers_.basis_bytes += basis.bytes();
    layers_.factor_bytes += factors.bytes();
    layers_.basis.emplace(Key{layer_, name}, linear::BasisLinear<float>(std::move(basis), order));
    layers_.factors.emplace(Key{layer_, name}, linear::FactorLinear<float>(std::move(factors)));
  }

  Layers layers_;
  std::int64_t layer_ = 0;
};

/// Runs the layer of a name where there is one, else the dense product.
template <class Table>
Model::Linear through(const Table& table, std::vector<std::byte>& workspace) {
  return [&table, &workspace](std::int64_t layer, const std::string& name, const Model::Rows& x,
                              const bda::Matrix<float>& w) {
    Model::Rows y(x.rows(), w.cols);
    const auto found = table.find(Key{layer, name});
    if (found == table.end()) {
      y.noalias() = x * bda::linalg::map(w);
      return y;
    }
    workspace.resize(std::max(workspace.size(), found->second.workspace_size(x.rows())));
    const bda::Status status = found->second.run({x.data(), {x.rows(), x.cols()}},
                                                 {y.data(), {y.rows(), y.cols()}}, workspace);
    if (!status) throw std::runtime_error(status.message());
    return y;
  };
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

nlohmann::json measure(const std::filesystem::path& folder, const std::filesystem::path& evaluation,
                       std::int64_t windows) {
  const auto weights = bda::checkpoint::load_transformer<float>(folder);
  const auto set = perplexity::read_evaluation_set(evaluation, windows, weights.vocab_size(),
                                                   weights.max_positions);
  const Truncation truncation(weights);
  const Layers& layers = truncation.layers();
  std::vector<std::byte> workspace;
  Model dense(weights), basis(weights), factors(weights);
  basis.linear = through(layers.basis, workspace);
  factors.linear = through(layers.factors, workspace);

  // The layers alone (forward), then the losses, which need the output embedding too.
  constexpr int kRepetitions = 3;
  std::vector<double> times[3];
  double losses[3] = {0, 0, 0};
  for (std::int64_t w = 0; w < set.tokens.rows; ++w) {
    const std::span<const std::int64_t> window(&set.tokens(w, 0),
                                               static_cast<std::size_t>(set.tokens.cols));
    const Model* models[] = {&basis, &factors, &dense};
    for (int r = 0; r < kRepetitions; ++r)
      for (int i = 0; i < 3; ++i)
        times[i].push_back(
            bda_bench::cpu_seconds([&] { static_cast<void>(models[i]->forward(window).sum()); }));
    for (int i = 0; i < 3; ++i) losses[i] += models[i]->loss(window);
  }
  const double tokens = static_cast<double>(set.tokens.cols);
  const double count = static_cast<double>(set.tokens.rows * (set.tokens.cols - 1));
  const std::int64_t others = perplexity::bytes_of(weights) - layers.dense_bytes;
  const auto entry = [&](int i, std::int64_t layer_bytes) {
    return nlohmann::json{{"tokens_per_second", tokens / median(times[i])},
                          {"model_bytes", others + layer_bytes},
                          {"layer_bytes", layer_bytes},
                          {"perplexity", std::exp(losses[i] / count)}};
  };
  nlohmann::json result{{"model", std::filesystem::canonical(folder).filename()},
                        {"evaluation", evaluation.filename()},
                        {"windows", set.tokens.rows},
                        {"tokens", set.tokens.cols},
                        {"threads", 1},
                        {"storage", "fp32"},
                        {"cpu", bda_bench::cpu_name()},
                        {"basis", entry(0, layers.basis_bytes)},
                        {"factor_pair", entry(1, layers.factor_bytes)},
                        {"dense", entry(2, layers.dense_bytes)}};
  std::printf("%s\n", result.dump(1).c_str());
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5 || argc % 2 == 0) {
    std::fprintf(stderr,
                 "usage: bench_low_rank_model WINDOWS OUT.json MODEL_DIR EVAL.safetensors ...\n");
    return 2;
  }
  try {
    nlohmann::json all = nlohmann::json::array();
    for (int i = 3; i + 1 < argc; i += 2)
      all.push_back(measure(argv[i], argv[i + 1], std::stol(argv[1])));
    std::ofstream(argv[2]) << all.dump(1) << '\n';
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}

// The reconstruction table: how far each strategy's stored weights are from the original products,
// in fp32, fp16 and bf16.
//
//   report_reconstruction [--json FILE] [--random] [MODEL_DIR...]
//
// --random adds one layer of DeepSeek-V2-Lite's shape with normal weights.

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "bda/checkpoint/load.hpp"
#include "bda/preparation/prepare.hpp"
#include "random_layer.hpp"

namespace {

struct Model {
  std::string name;
  std::vector<bda::AttentionWeights<float>> layers;
};

/// Figures over all heads of all layers, both sides together.
struct Figures {
  std::vector<double> residual, alpha, squared_error, coefficient;

  void add(const bda::DecompositionReport& report) {
    for (const bda::HeadReport& head : report.heads) {
      residual.push_back(head.residual);
      alpha.push_back(head.alpha);
      squared_error.push_back(head.mean_squared_error);
      coefficient.push_back(head.largest_coefficient);
    }
  }
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}
double largest(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}
double mean(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

template <class T>
void measure(const Model& model, const std::string& basis, bda::Rounding rounding,
             nlohmann::json& rows) {
  bda::PreparationOptions options;
  options.basis = bda::parse_basis_strategy(basis);
  options.rounding = rounding;
  options.threads = static_cast<int>(std::thread::hardware_concurrency());
  const auto& first = model.layers.front();
  if (basis == bda::LatentRotation::name && !first.latent) return;
  options.sides.qk = !bda::why_qk_is_inexact(first);
  const std::string dtype(bda::name_of(bda::StorageTraits<T>::dtype));
  const char* how = rounding == bda::Rounding::kAware ? "aware" : "plain";
  Figures f;
  try {
    for (const auto& layer : model.layers) {
      const auto report = bda::prepare<T>(layer, options).report;
      if (report.qk) f.add(*report.qk);
      if (report.vo) f.add(*report.vo);
    }
  } catch (const bda::Error& error) {
    std::printf("| %s | %s | %s | %s | refused: %s |\n", model.name.c_str(), dtype.c_str(),
                basis.c_str(), how, error.what());
    return;
  }
  std::printf("| %s | %s | %s | %s | %.2e | %.2e / %.2e | %.2f / %.2f | %.3g |\n",
              model.name.c_str(), dtype.c_str(), basis.c_str(), how, mean(f.squared_error),
              median(f.residual), largest(f.residual), median(f.alpha), largest(f.alpha),
              largest(f.coefficient));
  std::fflush(stdout);
  rows.push_back({{"model", model.name},
                  {"dtype", dtype},
                  {"basis", basis},
                  {"rounding", how},
                  {"mean_squared_error", mean(f.squared_error)},
                  {"residual_median", median(f.residual)},
                  {"residual_max", largest(f.residual)},
                  {"alpha_median", median(f.alpha)},
                  {"alpha_max", largest(f.alpha)},
                  {"coefficient_max", largest(f.coefficient)}});
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Model> models;
  std::string json;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--random") {
      models.push_back({"random V2-Lite layer", {bench::deepseek_v2_lite_layer<float>(1)}});
    } else if (argument == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      const auto checkpoint = bda::checkpoint::open_checkpoint(argument);
      Model model{std::filesystem::path(argument).filename().string(), {}};
      for (std::int64_t l = 0; l < bda::checkpoint::attention_count(checkpoint.config); ++l)
        model.layers.push_back(bda::checkpoint::load_attention_layer<float>(checkpoint, l));
      models.push_back(std::move(model));
    }
  }
  std::printf(
      "| model | stored as | basis | rounding | MSE | relative Frobenius error, median / max | "
      "alpha, median / max | max coefficient |\n| --- | --- | --- | --- | ---: | ---: | ---: | "
      "---: |\n");
  nlohmann::json rows = nlohmann::json::array();
  for (const Model& model : models) {
    for (const char* basis :
         {"first_r", "residual_min", "best_slice", "joint_pivot", "latent_rotation"}) {
      measure<float>(model, basis, bda::Rounding::kPlain, rows);
      for (const bda::Rounding rounding : {bda::Rounding::kPlain, bda::Rounding::kAware}) {
        measure<Eigen::half>(model, basis, rounding, rows);
        measure<Eigen::bfloat16>(model, basis, rounding, rows);
      }
    }
  }
  if (!json.empty()) std::ofstream(json) << rows.dump(1) << '\n';
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}

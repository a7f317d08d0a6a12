// Trains the same small transformer from scratch with plain attention and with Basis Decomposition
// attention, on sequences that it makes itself, from several seeds; prints the losses of both.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numbers>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "adam.hpp"
#include "bda/core/checks.hpp"
#include "bda/core/parallel.hpp"
#include "model.hpp"
#include "task.hpp"

namespace {

using namespace training_example;

constexpr std::string_view kUsage =
    R"(usage: bda_training [--seeds N] [--steps N] [--threads N] [--json FILE]

Trains a transformer of two layers (dim 64, 4 heads of 16) to sort 12 symbols, with plain and with
basis-decomposed attention, from N seeds each (default 5, 1000 steps of 32 sequences), and prints
the training loss along the way and the share of held-out sequences that come out sorted.
)";

struct Options {
  std::int64_t seeds = 5, steps = 1000;
  int threads = 1;
  std::string json;
};

constexpr std::int64_t kBatch = 32, kHeldOut = 512, kEvery = 10;
constexpr double kRate = 3e-3;

struct Run {
  bool basis_decomposed = false;
  std::int64_t seed = 0, parameters = 0;
  std::vector<double> losses;  // mean of each `kEvery` steps
  double held_out_loss = 0, held_out_sorted = 0;
};

Run train(const SortingTask& task, bool basis_decomposed, std::int64_t seed, std::int64_t steps) {
  // Both kinds of a seed see the same initial numbers and the same data.
  std::mt19937 weights_random(static_cast<std::uint32_t>(1000 + seed));
  std::mt19937 data_random(static_cast<std::uint32_t>(2000 + seed)), held_out_random(7);
  ModelShape shape;
  shape.vocab = task.vocab();
  shape.tokens = task.tokens();
  shape.basis_decomposed = basis_decomposed;
  Weights<float> weights = initial_weights<float>(shape, weights_random);
  Weights<float> gradients = weights;
  gradients.for_each([](float* values, std::int64_t count) { std::fill_n(values, count, 0.0f); });
  Run run{basis_decomposed, seed, weights.size(), {}, 0, 0};
  Adam<float> adam(run.parameters);
  double sum = 0;
  for (std::int64_t step = 0; step < steps; ++step) {
    const auto batch = make_batch(task, kBatch, data_random);
    sum += evaluate(weights, batch, task.tokens(), task.first_answer(), &gradients).mean;
    const double warm = std::min(1.0, static_cast<double>(step + 1) / 50);
    const double share = static_cast<double>(step) / static_cast<double>(steps);
    adam.step(weights, gradients, kRate * warm * (0.5 + 0.5 * std::cos(std::numbers::pi * share)));
    if ((step + 1) % kEvery == 0) run.losses.push_back(std::exchange(sum, 0) / kEvery);
  }
  const auto held_out = make_batch(task, kHeldOut, held_out_random);
  const Loss loss = evaluate<float>(weights, held_out, task.tokens(), task.first_answer(), nullptr);
  run.held_out_loss = loss.mean;
  run.held_out_sorted = static_cast<double>(loss.correct) / kHeldOut;
  return run;
}

Options parse(int argc, char** argv) {
  Options options;
  options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw bda::Error(name, "an option of the usage, with a value", "none");
    const std::string value = argv[i + 1];
    const auto count = [&](std::int64_t largest) {
      const std::int64_t n = std::atoll(value.c_str());
      bda::check::in_range(name, n, 1, largest);
      return n;
    };
    if (name == "--seeds")
      options.seeds = count(1000);
    else if (name == "--steps")
      options.steps = count(1000000);
    else if (name == "--threads")
      options.threads = static_cast<int>(count(4096));
    else if (name == "--json")
      options.json = value;
    else
      throw bda::Error("argument", "an option of the usage", name);
  }
  return options;
}

struct Spread {
  double mean = 0, low = 0, high = 0;
};

template <class Value>
Spread spread(const std::vector<Run>& runs, bool basis_decomposed, const Value& value) {
  std::vector<double> values;
  for (const Run& run : runs)
    if (run.basis_decomposed == basis_decomposed) values.push_back(value(run));
  Spread s{0, *std::min_element(values.begin(), values.end()),
           *std::max_element(values.begin(), values.end())};
  for (double v : values) s.mean += v / static_cast<double>(values.size());
  return s;
}

void print(const std::vector<Run>& runs) {
  const auto row = [&](const std::string& name, const auto& value) {
    std::cout << std::setw(22) << name;
    for (const bool kind : {false, true}) {
      const Spread s = spread(runs, kind, value);
      std::cout << std::fixed << std::setprecision(4) << std::setw(12) << s.mean << " [" << s.low
                << ", " << s.high << "]";
    }
    std::cout << '\n';
  };
  std::cout << "mean [lowest, highest] over the seeds: plain attention, then BD attention\n";
  const std::size_t points = runs[0].losses.size();
  for (std::size_t i = 0; i < points; i += std::max<std::size_t>(1, points / 10))
    row("loss, step " + std::to_string((i + 1) * kEvery),
        [i](const Run& run) { return run.losses[i]; });
  if (points > 0) row("loss, last", [](const Run& run) { return run.losses.back(); });
  row("held-out loss", [](const Run& run) { return run.held_out_loss; });
  row("held-out sorted", [](const Run& run) { return run.held_out_sorted; });
  row("parameters", [](const Run& run) { return static_cast<double>(run.parameters); });
}

void save(const std::vector<Run>& runs, const std::string& path) {
  nlohmann::json all = nlohmann::json::array();
  for (const Run& run : runs)
    all.push_back({{"attention", run.basis_decomposed ? "bd" : "plain"},
                   {"seed", run.seed},
                   {"parameters", run.parameters},
                   {"steps_a_point", kEvery},
                   {"losses", run.losses},
                   {"held_out_loss", run.held_out_loss},
                   {"held_out_sorted", run.held_out_sorted}});
  std::ofstream file(path);
  file << all.dump() << '\n';
  if (!file) throw bda::Error(path, "a file that can be written", "an error");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string_view(argv[1]) == "--help") {
      std::cout << kUsage;
      return 0;
    }
    const Options options = parse(argc, argv);
    const SortingTask task;
    std::vector<Run> runs(static_cast<std::size_t>(2 * options.seeds));
    std::mutex printing;
    bda::parallel_for(2 * options.seeds, options.threads, [&](std::int64_t i) {
      Run run = train(task, i % 2 == 1, i / 2, options.steps);
      const std::lock_guard lock(printing);
      std::cerr << (run.basis_decomposed ? "BD   " : "plain") << " seed " << run.seed
                << ": held-out loss " << run.held_out_loss << ", sorted " << run.held_out_sorted
                << '\n';
      runs[static_cast<std::size_t>(i)] = std::move(run);
    });
    print(runs);
    if (!options.json.empty()) save(runs, options.json);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n\n" << kUsage;
    return 1;
  }
}

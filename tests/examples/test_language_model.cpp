#include <bda/checkpoint.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "../../examples/perplexity/evaluation_set.hpp"
#include "../../examples/perplexity/language_model.hpp"
#include "checkpoint/temporary_folder.hpp"

namespace {

namespace checkpoint = bda::checkpoint;
using perplexity::Activations;
using perplexity::LanguageModel;

// The fixtures have at most 4 layers of some 10 products each, over at most 100 terms: 4000
// roundings of 1.1e-16 one after the other, 4.4e-13 of the largest activation. Norms and softmax
// enlarge that, by less than 100 in a model of this depth. A wrong convention shows from 1e-4 up.
constexpr double kRounding = 1e-10;

double max_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    REQUIRE(std::isfinite(a[i]));
    largest = std::max(largest, std::abs(a[i] - b[i]));
  }
  return largest;
}

std::vector<bda::AttentionWeights<double>> attention_of(
    const checkpoint::TransformerWeights<double>& weights) {
  std::vector<bda::AttentionWeights<double>> attention;
  for (const auto& layer : weights.layers) attention.push_back(layer.attention);
  return attention;
}

std::vector<double> losses_of(const LanguageModel<double>& model,
                              const bda::Matrix<std::int64_t>& tokens) {
  std::vector<double> losses(static_cast<std::size_t>(tokens.rows * (tokens.cols - 1)),
                             std::numeric_limits<double>::quiet_NaN());
  model.token_losses(tokens.values, tokens.cols, losses);
  return losses;
}

TEST_CASE("Logits and losses are those of the published code") {
  const std::string name =
      GENERATE(as<std::string>{}, "deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2", "llama");
  INFO(name);
  const auto weights = checkpoint::load_transformer<double>(bda_test::fixture(name));
  const auto file = bda_test::fixture(name) / "reference.safetensors";
  const perplexity::EvaluationSet set = perplexity::read_evaluation_set(
      file, std::nullopt, weights.vocab_size(), weights.max_positions);
  REQUIRE_FALSE(set.reference_losses.empty());

  const LanguageModel<double> model(weights, attention_of(weights));
  const std::span<const std::int64_t> window0 =
      std::span(set.tokens.values).first(static_cast<std::size_t>(set.tokens.cols));
  const Activations<double> logits = model.logits(model.forward(window0, set.tokens.cols));
  const auto expected =
      checkpoint::read_values<double>(checkpoint::SafetensorsFile(file).at("logits"));
  CHECK(max_difference({logits.data(), logits.data() + logits.size()}, expected) < kRounding);

  CHECK(max_difference(losses_of(model, set.tokens), set.reference_losses.values) < kRounding);
}

TEST_CASE("A sequence's losses do not depend on the others in the batch") {
  const auto weights = checkpoint::load_transformer<double>(bda_test::fixture("deepseek_v2_yarn"));
  const perplexity::EvaluationSet set = perplexity::read_evaluation_set(
      bda_test::fixture("deepseek_v2_yarn") / "reference.safetensors", std::nullopt,
      weights.vocab_size(), weights.max_positions);
  const LanguageModel<double> model(weights, attention_of(weights));
  const std::vector<double> both = losses_of(model, set.tokens);

  bda::Matrix<std::int64_t> second(1, set.tokens.cols);
  std::copy_n(set.tokens.data() + set.tokens.cols, set.tokens.cols, second.data());
  const std::vector<double> alone = losses_of(model, second);
  const auto half = both.begin() + static_cast<std::ptrdiff_t>(alone.size());
  CHECK(max_difference(alone, {half, both.end()}) < kRounding);
}

TEST_CASE("Products with 16-bit weights accumulate in float") {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  bda::Matrix<Eigen::bfloat16> w(37, 261);  // more columns than one panel
  for (auto& value : w.values) value = static_cast<Eigen::bfloat16>(normal(random));
  Activations<Eigen::bfloat16> x(5, 37);
  for (Eigen::Index i = 0; i < x.size(); ++i) x.data()[i] = normal(random);

  const Activations<Eigen::bfloat16> y = perplexity::multiply(x, w);
  REQUIRE(y.rows() == 5);
  REQUIRE(y.cols() == 261);
  for (Eigen::Index i = 0; i < y.rows(); ++i)
    for (Eigen::Index j = 0; j < y.cols(); ++j) {
      double exact = 0, magnitude = 0;
      for (Eigen::Index k = 0; k < x.cols(); ++k) {
        const double term = double(x(i, k)) * double(float(w(k, j)));
        exact += term;
        magnitude += std::abs(term);
      }
      // a sum of n products errs by at most n u sum |terms|
      CHECK(std::abs(double(y(i, j)) - exact) <= 37 * 0x1p-24 * magnitude);
    }
}

TEST_CASE("Activations follow their formulas, far out as well") {
  using checkpoint::Activation;
  const auto gelu_tanh = [](double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  };
  const auto gelu = [](double x) { return x / 2 * std::erfc(-x / std::sqrt(2.0)); };
  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  for (const double x : {-1000.0, -30.0, -1.7, -1e-3, 0.0, 0.4, 2.5, 40.0, 1000.0}) {
    const auto activated = [x](Activation kind) {
      Activations<double> value = Activations<double>::Constant(1, 1, x);
      perplexity::activate(kind, value);
      return value(0, 0);
    };
    INFO(x);
    // 1 + tanh and 1 + erf cancel below zero, so the error is a few roundings of |x|
    const double tolerance = 8 * std::numeric_limits<double>::epsilon() * std::abs(x);
    CHECK(std::abs(activated(Activation::kSilu) - silu(x)) <= tolerance);
    CHECK(std::abs(activated(Activation::kGeluTanh) - gelu_tanh(x)) <= tolerance);
    CHECK(std::abs(activated(Activation::kGelu) - gelu(x)) <= tolerance);
  }
}

using Choice = std::vector<perplexity::ExpertChoice<double>>;

TEST_CASE("Experts are chosen greedily") {
  // Of the two equal scores the first counts as the larger. All values below are exact.
  const std::vector<double> scores{0.1, 0.375, 0.125, 0.125};
  checkpoint::ExpertRouting routing{.experts_per_token = 2, .scale = 4.0};
  CHECK(perplexity::choose_experts(routing, scores) == Choice{{1, 1.5}, {2, 0.5}});
  routing.normalize = true;  // by the sum of the chosen, and without the scale
  CHECK(perplexity::choose_experts(routing, scores) == Choice{{1, 0.75}, {2, 0.25}});
  routing.experts_per_token = 1;  // a single expert is not normalized
  CHECK(perplexity::choose_experts(routing, scores) == Choice{{1, 1.5}});
}

TEST_CASE("Experts are chosen within the best groups only") {
  // Groups of two: best scores 0.3, 0.25 and 0.2, so expert 3 is out although it beats expert 5.
  const std::vector<double> scores{0.3, 0.0625, 0.2, 0.15, 0.25, 0.0375};
  const checkpoint::ExpertRouting routing{
      .experts_per_token = 4, .groups = 3, .groups_per_token = 2};
  CHECK(perplexity::choose_experts(routing, scores) ==
        Choice{{0, 0.3}, {4, 0.25}, {1, 0.0625}, {5, 0.0375}});
}

TEST_CASE("An evaluation set that does not fit is refused with the value at fault") {
  const auto file = bda_test::fixture("gpt2") / "reference.safetensors";
  const auto error = [&](std::optional<std::int64_t> windows, std::int64_t vocab,
                         std::int64_t positions) {
    return bda_test::error_of(
        [&] { (void)perplexity::read_evaluation_set(file, windows, vocab, positions); });
  };
  CHECK(error(std::nullopt, 96, 32).empty());
  CHECK(error(3, 96, 32).find("--windows: expected a value from 1 to 2, got 3") !=
        std::string::npos);
  CHECK(error(std::nullopt, 96, 23).find("from 2 to 23, got 24") != std::string::npos);
  CHECK(error(std::nullopt, 2, 32).find("a value from 0 to 1, got ") != std::string::npos);
  const bda_test::TemporaryFolder folder;
  const auto flat = folder.write(
      "flat.safetensors",
      bda_test::file_bytes(R"({"tokens":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}})", 16));
  CHECK(bda_test::error_of([&] {
          (void)perplexity::read_evaluation_set(flat, std::nullopt, 96, 32);
        }).find("[windows, length], got [4]") != std::string::npos);
  const auto short_nll = folder.write(
      "short.safetensors",
      bda_test::file_bytes(R"({"tokens":{"dtype":"I32","shape":[1,4],"data_offsets":[0,16]},)"
                           R"("nll":{"dtype":"F32","shape":[1,4],"data_offsets":[16,32]}})",
                           32));
  CHECK(bda_test::error_of([&] {
          (void)perplexity::read_evaluation_set(short_nll, std::nullopt, 96, 32);
        }).find("expected [1, 3], got [1, 4]") != std::string::npos);
}

}  // namespace

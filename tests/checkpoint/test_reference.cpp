#include <bda/checkpoint/load.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <limits>
#include <string>

#include "checkpoint/attention_oracle.hpp"
#include "checkpoint/temporary_folder.hpp"

namespace {

TEST_CASE("The first layer's attention computes what the published code computes") {
  const std::string name =
      GENERATE(as<std::string>{}, "deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2", "llama");
  INFO(name);
  const auto checkpoint = bda::checkpoint::open_checkpoint(bda_test::fixture(name));
  const auto weights = bda::checkpoint::load_attention_layer<double>(checkpoint, 0);
  bda::validate(weights);

  const bda::checkpoint::SafetensorsFile file(bda_test::fixture(name) / "reference.safetensors");
  const bda::checkpoint::Tensor& input = file.at("layer0_attention_input");
  const auto in = bda::checkpoint::read_values<double>(input);
  const auto expected = bda::checkpoint::read_values<double>(file.at("layer0_attention_output"));
  const auto hidden = static_cast<std::size_t>(input.shape[1]);
  bda_test::Rows x(static_cast<std::size_t>(input.shape[0]), bda_test::Row(hidden));
  for (std::size_t t = 0; t < x.size(); ++t)
    for (std::size_t i = 0; i < hidden; ++i) x[t][i].value = in[t * hidden + i];

  const bda_test::Rows y = bda_test::causal_attention(weights, x);
  REQUIRE(y.size() * y[0].size() == expected.size());
  double largest_bound = 0, excess = -std::numeric_limits<double>::infinity();
  for (std::size_t t = 0; t < y.size(); ++t)
    for (std::size_t i = 0; i < hidden; ++i) {
      const double difference = std::abs(y[t][i].value - expected[t * hidden + i]);
      excess = std::max(excess, difference - 2 * y[t][i].error);
      largest_bound = std::max(largest_bound, y[t][i].error);
    }
  CHECK(excess <= 0);
  CHECK(largest_bound < 1e-9);  // a bound that could hide a wrong weight would prove nothing
}

}  // namespace

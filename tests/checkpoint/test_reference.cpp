#include <bda/checkpoint/load.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <limits>
#include <string>

#include "checkpoint/recorded_module.hpp"
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
  const bda_test::RecordedModule recorded(file, "layer0_attention_",
                                          attention_pattern(checkpoint.config, 0));
  const bda::testing::Rows y = recorded.bounded(weights);
  REQUIRE(y.size() * y[0].size() == recorded.output.size());
  double largest_bound = 0, excess = -std::numeric_limits<double>::infinity();
  for (std::size_t t = 0; t < y.size(); ++t)
    for (std::size_t i = 0; i < y[t].size(); ++i) {
      const double difference = std::abs(y[t][i].value - recorded.output[t * y[t].size() + i]);
      excess = std::max(excess, difference - 2 * y[t][i].error);
      largest_bound = std::max(largest_bound, y[t][i].error);
    }
  CHECK(excess <= 0);
  CHECK(largest_bound < 1e-9);  // a bound that could hide a wrong weight would prove nothing
}

}  // namespace

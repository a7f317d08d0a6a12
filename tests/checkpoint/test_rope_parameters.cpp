#include <bda/checkpoint/convert.hpp>
#include <bda/checkpoint/rope_parameters.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <string>

#include "checkpoint/temporary_folder.hpp"

namespace {

using bda::RopeStyle;
using bda::checkpoint::ConfigFields;
using bda::checkpoint::Json;
using bda::checkpoint::read_rope_parameters;
using bda::checkpoint::RopeParameters;
using bda_test::error_of;
using Catch::Matchers::ContainsSubstring;

RopeParameters read(const std::string& json, std::int64_t rope_dim) {
  ConfigFields fields(Json::parse(json), "config.json");
  RopeParameters result = read_rope_parameters(fields, RopeStyle::kHalfSplit, rope_dim,
                                               {"default", "linear", "llama3", "yarn"});
  fields.refuse_unknown();
  return result;
}

struct Published {
  std::string name;  // in rope.safetensors
  std::int64_t rope_dim;
  double factor;
  std::string json;
};

TEST_CASE("Scaled frequencies and magnitudes are those of the published code") {
  const Published c = GENERATE(values<Published>({
      {"deepseek_v2_lite", 64, 40,
       R"({"rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32,
           "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
           "original_max_position_embeddings": 4096}})"},
      {"yarn_llama_2", 128, 32,
       R"({"rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 32,
           "original_max_position_embeddings": 4096}})"},
      {"llama_3_1", 128, 8,
       R"({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
           "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}})"},
      {"llama_3_2", 64, 32,
       R"({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "type": "llama3",
           "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}})"},
      {"linear", 48, 2.5, R"({"rope_scaling": {"type": "linear", "factor": 2.5}})"},
  }));
  INFO(c.name);
  const RopeParameters parameters = read(c.json, c.rope_dim);
  const bda::checkpoint::SafetensorsFile file(bda_test::fixture("rope.safetensors"));
  const auto frequencies = bda::checkpoint::read_values<double>(file.at(c.name + ".frequencies"));
  const auto magnitude = bda::checkpoint::read_values<double>(file.at(c.name + ".magnitude"));
  REQUIRE(parameters.rope.frequencies.size() == frequencies.size());
  // In units u of double, for either implementation. theta^(-2i/w): the exponent's rounding enters
  // times ln(theta) <= 13.2, the power and the quotient add one each: 16 u. The blending weight k
  // of f ((1 - k) / factor + k) is a quotient of small integers or, in Llama's rule, of rotations
  // (at most high_freq_factor = 4, off by 18 u) less 1 by 3: at most 25 u, which the blend
  // magnifies by its relative slope, at most factor. Four more roundings in the blend.
  const double tolerance = 2 * (20 + 25 * c.factor) * 0x1p-53;
  for (std::size_t i = 0; i < frequencies.size(); ++i)
    CHECK(std::abs(parameters.rope.frequencies[i] / frequencies[i] - 1) <= tolerance);
  CHECK(std::abs(parameters.rope.magnitude / magnitude[0] - 1) <= 8 * 0x1p-53);
}

TEST_CASE("Both spellings of an unscaled embedding mean the same") {
  const RopeParameters base = read(R"({"rope_theta": 5000})", 8);
  CHECK(base.rope.frequencies == bda::rope_frequencies(8, 5000));
  CHECK(base.rope.magnitude == 1);
  CHECK(base.score_factor == 1);
  for (const char* json :
       {R"({"rope_theta": 5000, "rope_scaling": null})",
        R"({"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}})",
        R"({"rope_parameters": {"rope_theta": 5000.0}})",
        R"({"rope_theta": 5000, "rope_parameters": {"rope_theta": 5000, "rope_type": "default"}})",
        R"({"rope_theta": 5000, "rope_scaling": {"type": "default"}})"})
    CHECK(read(json, 8).rope.frequencies == base.rope.frequencies);
  CHECK(read("{}", 8).rope.frequencies == bda::rope_frequencies(8, 10000));
}

struct Refusal {
  std::string json;
  std::string message;
};

TEST_CASE("Rotary parameters that are unknown or contradict each other are refused") {
  const Refusal refusal = GENERATE(values<Refusal>({
      {R"({"rope_scaling": {"type": "dynamic", "factor": 2}})",
       "rope_scaling: type: expected one of default, linear, llama3, yarn, got \"dynamic\""},
      {R"({"rope_parameters": {"rope_type": "longrope"}})",
       "rope_parameters: rope_type: expected one of default, linear, llama3, yarn, "
       "got \"longrope\""},
      {R"({"rope_scaling": "linear"})", "rope_scaling: expected an object, got \"linear\""},
      {R"({"rope_scaling": {"type": "linear"}})", "factor: expected a positive number"},
      {R"({"rope_scaling": {"type": "linear", "factor": 0}})", "got 0"},
      {R"({"rope_scaling": {"factor": 2}})", "rope_scaling: factor: expected a field that"},
      {R"({"rope_scaling": {"type": "linear", "factor": 2, "finetuned": true}})",
       "finetuned: expected a field that"},
      {R"({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}})",
       "type: expected \"yarn\" (as in rope_type), got \"linear\""},
      {R"({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {}})",
       "rope_scaling: expected no value beside rope_parameters"},
      {R"({"rope_theta": 10000, "rope_parameters": {"rope_theta": 5000}})",
       "rope_theta: expected 5000.0 (as in rope_parameters), got 10000"},
      {R"({"rope_parameters": {"partial_rotary_factor": 0.5}})",
       "partial_rotary_factor: expected 1.0 (the rotated share of a head), got 0.5"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4}})",
       "original_max_position_embeddings: expected a positive number"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 0.7,
           "original_max_position_embeddings": 64}})",
       "mscale: expected 1, where mscale_all_dim is not given, got 0.7"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": false,
           "original_max_position_embeddings": 64}})",
       "truncate: expected true"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 1.5,
           "original_max_position_embeddings": 64}})",
       "attention_factor: expected a field that"},
      {R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
           "high_freq_factor": 4, "original_max_position_embeddings": 64}})",
       "low_freq_factor: expected less than high_freq_factor, got 4"},
  }));
  CHECK_THAT(error_of([&] { (void)read(refusal.json, 8); }), ContainsSubstring(refusal.message));
}

}  // namespace

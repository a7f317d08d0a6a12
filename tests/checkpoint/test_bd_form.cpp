#include <bda/checkpoint/bd_form.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>

#include "checkpoint/temporary_folder.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda::IndexSet;
using bda_test::error_of;
using Catch::Matchers::ContainsSubstring;

BdAttention module_with_everything() {
  BdAttention a;
  a.name = "layers.0.self_attn";
  a.prefix = "model.";
  a.dtype = bda::DType::kBF16;
  a.basis = "joint_pivot";
  a.qk = IndexSet::slice(24, 4, 8);
  a.vo = IndexSet(24, {1, 5, 23});
  a.latent = bda::LatentChange::kPermuted;
  a.latent_norm_epsilon = 1e-6;
  a.head_norm_epsilon = 3e-6;
  a.sinks = {0.1, -1.0 / 3};
  a.tensors = {"q", "k.weight"};
  return a;
}

TEST_CASE("What the section says of a module reads back as it was") {
  BdAttention plain_latent = module_with_everything();
  plain_latent.qk = std::nullopt;
  plain_latent.latent_norm_epsilon = std::nullopt;
  plain_latent.latent = bda::LatentChange::kRotated;
  const BdForm form{module_with_everything(), std::nullopt, plain_latent};
  const BdForm read = parse_bd_form(Json::parse(json_of(form).dump()), "bda");
  REQUIRE(read.size() == 3);
  CHECK_FALSE(read[1]);
  for (const std::size_t i : {0, 2}) {
    REQUIRE(read[i]);
    CHECK(read[i]->name == form[i]->name);
    CHECK(read[i]->prefix == form[i]->prefix);
    CHECK(read[i]->dtype == form[i]->dtype);
    CHECK(read[i]->basis == form[i]->basis);
    CHECK(read[i]->qk == form[i]->qk);
    CHECK(read[i]->vo == form[i]->vo);
    CHECK(read[i]->latent == form[i]->latent);
    CHECK(read[i]->latent_norm_epsilon == form[i]->latent_norm_epsilon);
    CHECK(read[i]->head_norm_epsilon == form[i]->head_norm_epsilon);
    CHECK(read[i]->sinks == form[i]->sinks);
    CHECK(read[i]->tensors == form[i]->tensors);
  }
}

struct BadField {
  std::string pointer;  // of the field in the section
  std::string value;
  std::string message;
};

TEST_CASE("A section that is damaged is refused by field and value") {
  const BadField bad = GENERATE(values<BadField>({
      {"/format_version", "2", "format_version: expected 1"},
      {"/format_version", "null", "format_version: expected 1"},
      {"/attention", "{}", "attention: expected an array, got {}"},
      {"/attention/0", "7", "attention[0]: expected an object or null, got 7"},
      {"/attention/0/dtype", "\"fp8\"", "dtype: expected fp64, fp32, fp16 or bf16, got \"fp8\""},
      {"/attention/0/dtype", "16", "dtype: expected a string, got 16"},
      {"/attention/0/latent", "\"turned\"", "latent: expected none, permuted or rotated"},
      {"/attention/0/latent_norm_epsilon", "-1", "latent_norm_epsilon: expected a positive number"},
      {"/attention/0/sinks", "[\"x\"]", "sinks: expected numbers"},
      {"/attention/0/tensors", "[7]", "tensors: expected names"},
      {"/attention/0/tensors", "null", "tensors: expected an array, got null"},
      {"/attention/0/surprise", "1", "surprise: expected a field that this library"},
      {"/surprise", "1", "surprise: expected a field that this library"},
      {"/attention/0/qk", "7", "qk: expected an object or null, got 7"},
      {"/attention/0/qk/of", "0", "qk: of: expected an integer from 1"},
      {"/attention/0/qk/first", "17", "qk: first: expected integers from 0 to 16, got 17"},
      {"/attention/0/qk/first", "-1", "qk: first: expected integers from 0 to 16, got -1"},
      {"/attention/0/qk/first", "0.5", "qk: first: expected integers"},
      {"/attention/0/qk/first", "null", "qk: first: expected an integer, got null"},
      {"/attention/0/qk/count", "25", "qk: count: expected at most 24, got 25"},
      {"/attention/0/qk/order", "1", "order: expected a field that this library"},
      {"/attention/0/vo/channels", "[]", "vo: channels: expected a list of 1 to 65536"},
      {"/attention/0/vo/channels", "[24]", "vo: channels: expected integers from 0 to 23"},
      {"/attention/0/vo/channels", "[3,3]", "channel 3 twice"},
  }));
  INFO(bad.pointer << " = " << bad.value);
  Json section = json_of(BdForm{module_with_everything()});
  section[Json::json_pointer(bad.pointer)] = Json::parse(bad.value);
  CHECK_THAT(error_of([&] { (void)parse_bd_form(section, "bda"); }),
             ContainsSubstring(bad.message));
}

TEST_CASE("A basis takes no memory on a config's word alone") {
  Json section = json_of(BdForm{module_with_everything()});
  section["attention"][0]["qk"] = {{"of", 2147483647}, {"first", 0}, {"count", 2147483647}};
  CHECK_THAT(error_of([&] { (void)parse_bd_form(section, "bda"); }),
             ContainsSubstring("count: expected at most 65536"));
}

}  // namespace

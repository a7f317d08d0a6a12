#include <bda/checkpoint/plan.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>

#include "checkpoint/temporary_folder.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::fixture;
using Catch::Matchers::ContainsSubstring;

Json config_of(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_json_object(file.text(), path.string());
}

ConversionPlan plan_of(const std::string& published) {
  return plan_conversion(config_of(fixture("configs") / (published + ".json")), published);
}

TEST_CASE(
    "A plan of latent attention: kv_b_proj shrinks by r/d, and the whole by what that is of it") {
  const ConversionPlan plan = plan_of("deepseek_v2_lite");
  CHECK(plan.model_type == "deepseek_v2");
  CHECK(plan.dtype == bda::DType::kBF16);
  CHECK(plan.modules == 27);
  CHECK(plan.qk_modules == 27);
  CHECK(plan.vo_modules == 27);
  // By hand: d = 512, 16 heads, keys and values 128 wide, rope 64, hidden 2048.
  constexpr std::int64_t kv = 512 * 16 * (128 + 128);
  CHECK(plan.kv.before == 27 * kv);
  CHECK(plan.kv.after == 27 * kv / 4 * 3);
  CHECK(plan.kv.change() == -0.25);
  constexpr std::int64_t all = kv + 2048 * 16 * (128 + 64) + 16 * 128 * 2048 + 2048 * (512 + 64);
  CHECK(plan.attention.before == 27 * all);
  CHECK(plan.attention.before - plan.attention.after == plan.kv.before - plan.kv.after);
}

TEST_CASE("A plan counts q_lora, and says that fp8 files are smaller than what it speaks of") {
  const ConversionPlan plan = plan_of("deepseek_v3");
  CHECK(plan.quantized);
  CHECK(plan.modules == 61);
  constexpr std::int64_t kv = 512 * 128 * (128 + 128);
  CHECK(plan.kv.before == 61 * kv);
  CHECK(plan.kv.change() == -0.25);
  CHECK(plan.attention.before ==
        61 * (kv + 1536 * 128 * (128 + 64) + 128 * 128 * 7168 + 7168 * (512 + 64) + 7168 * 1536));
}

TEST_CASE("A plan of plain attention: both sides, or the values alone under rotary embedding") {
  const ConversionPlan gpt2 = plan_of("gpt2");
  CHECK(gpt2.dtype == bda::DType::kF32);  // it does not say, and that is what that means
  CHECK(gpt2.kv.before == 12 * 2 * 768 * 768);
  CHECK(gpt2.kv.before - gpt2.kv.after == 12 * 2 * 12 * 64 * 64);
  CHECK(gpt2.attention.before == 12 * 4 * 768 * 768);

  const ConversionPlan llama = plan_of("llama3_8b");
  CHECK(llama.qk_modules == 0);
  CHECK(llama.vo_modules == 32);
  CHECK_THAT(llama.why_not_qk, ContainsSubstring("rotary embedding turns all 128 channels"));
  CHECK(llama.kv.before == 32 * 2 * 4096 * 1024);
  CHECK(llama.kv.before - llama.kv.after == 32 * 8 * 128 * 128);

  const ConversionPlan whisper = plan_of("whisper_large_v3");
  CHECK(whisper.modules == 96);  // encoder, decoder, and decoder on encoder
  CHECK(whisper.qk_modules == 96);
  CHECK(whisper.kv.after * 1280 == whisper.kv.before * (1280 - 64));
}

TEST_CASE("Norms of queries and keys leave the values' side, as in conversion") {
  const auto path = fixture("attention") / "qwen3" / "config.json";
  const ConversionPlan plan = plan_conversion(config_of(path), path.string());
  CHECK(plan.qk_modules == 0);
  CHECK(plan.vo_modules == plan.modules);
}

TEST_CASE("A plan of what is not known, or of too much, is refused") {
  Json config = config_of(fixture("configs") / "gpt2.json");
  config["model_type"] = "mamba";
  CHECK_THAT(error_of([&] { (void)plan_conversion(config, "c"); }),
             ContainsSubstring("c: model_type") && ContainsSubstring("whisper"));
  config["model_type"] = "gpt2";
  config["n_layer"] = 2147483647;
  CHECK_THAT(error_of([&] { (void)plan_conversion(config, "c"); }),
             ContainsSubstring("c: number of attention modules: expected a value from 1 to 65536"));
  config["n_layer"] = 12;
  config["torch_dtype"] = "int4";
  CHECK_THAT(error_of([&] { (void)plan_conversion(config, "c"); }),
             ContainsSubstring("c: torch_dtype: expected float64"));
}

}  // namespace

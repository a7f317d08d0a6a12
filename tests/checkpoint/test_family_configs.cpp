#include <bda/checkpoint/config.hpp>
#include <bda/checkpoint/load.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstdint>
#include <string>
#include <variant>

#include "checkpoint/temporary_folder.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using Catch::Matchers::ContainsSubstring;

/// tests/data/configs/NAME.json: the fields of a published model, long lists cut short.
Json config_of(const std::string& name) {
  const MappedFile file(bda_test::fixture("configs") / (name + ".json"));
  return parse_json_object(
      {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, name);
}

ModelConfig parse(const std::string& name, const std::string& changes = "{}") {
  Json json = config_of(name);
  json.merge_patch(Json::parse(changes));
  return parse_config(json, "config.json");
}

struct Published {
  const char* name;
  std::int64_t modules, i;  // how many there are, and the one that the rest is about
  std::int64_t query_dim, kv_dim, heads, kv_heads, qk_dim, rope_dim, v_dim;
  double scale;  // without YaRN's factor
  bool causal = true;
  std::int64_t window = 0;
  bool cross = false;
};

TEST_CASE("The families' configs are read as published") {
  const Published p = GENERATE(values<Published>({
      {"bert_base", 12, 3, 768, 768, 12, 12, 64, 0, 64, 0.125, false},
      {"roberta_base", 12, 0, 768, 768, 12, 12, 64, 0, 64, 0.125, false},
      {"vit_base", 12, 11, 768, 768, 12, 12, 64, 0, 64, 0.125, false},
      {"clip_vit_b32", 24, 11, 512, 512, 8, 8, 64, 0, 64, 0.125, true},
      {"clip_vit_b32", 24, 12, 768, 768, 12, 12, 64, 0, 64, 0.125, false},
      {"whisper_tiny", 12, 3, 384, 384, 6, 6, 64, 0, 64, 0.125, false},
      {"whisper_tiny", 12, 4, 384, 384, 6, 6, 64, 0, 64, 0.125, true},
      {"whisper_tiny", 12, 5, 384, 384, 6, 6, 64, 0, 64, 0.125, false, 0, true},
      {"opt_125m", 12, 0, 768, 768, 12, 12, 64, 0, 64, 0.125},
      {"t5_small", 18, 5, 512, 512, 8, 8, 64, 0, 64, 1, false},
      {"t5_small", 18, 17, 512, 512, 8, 8, 64, 0, 64, 1, false, 0, true},
      {"pythia_160m", 12, 0, 768, 768, 12, 12, 48, 16, 64, 0.125},
      {"phi_2", 32, 0, 2560, 2560, 32, 32, 48, 32, 80, 1 / std::sqrt(80.0)},
      {"mistral_7b", 32, 31, 4096, 4096, 32, 8, 0, 128, 128, 1 / std::sqrt(128.0), true, 4096},
      {"qwen2_7b", 28, 0, 3584, 3584, 28, 4, 0, 128, 128, 1 / std::sqrt(128.0)},
      {"qwen3_8b", 36, 0, 4096, 4096, 32, 8, 0, 128, 128, 1 / std::sqrt(128.0)},
      {"gemma_2b", 18, 0, 2048, 2048, 8, 1, 0, 256, 256, 0.0625},
      {"gemma2_2b", 26, 0, 2304, 2304, 8, 4, 0, 256, 256, 0.0625, true, 4096},
      {"gemma2_2b", 26, 1, 2304, 2304, 8, 4, 0, 256, 256, 0.0625, true, 0},
      {"gemma3_1b", 26, 4, 1152, 1152, 4, 1, 0, 256, 256, 0.0625, true, 512},
      {"gemma3_1b", 26, 5, 1152, 1152, 4, 1, 0, 256, 256, 0.0625, true, 0},
      {"gemma3_4b", 34, 0, 2560, 2560, 8, 4, 0, 256, 256, 0.0625, true, 1024},
      {"deepseek_v3", 61, 60, 1536, 512, 128, 128, 128, 64, 128, 1 / std::sqrt(192.0)},
      {"kimi_k2", 61, 0, 1536, 512, 64, 64, 128, 64, 128, 1 / std::sqrt(192.0)},
  }));
  CAPTURE(p.name, p.i);
  const ModelConfig config = parse(p.name);
  CHECK(attention_count(config) == p.modules);
  const bda::AttentionConfig a = attention_config(config, p.i);
  CHECK_NOTHROW(bda::validate(a));
  CHECK(a.query_dim == p.query_dim);
  CHECK(a.kv_dim == p.kv_dim);
  CHECK(a.heads == p.heads);
  CHECK(a.kv_heads == p.kv_heads);
  CHECK(a.qk_dim == p.qk_dim);
  CHECK(a.rope_dim == p.rope_dim);
  CHECK(a.v_dim == p.v_dim);
  if (!std::holds_alternative<DeepseekV3Config>(config)) CHECK(a.scale == p.scale);
  const AttentionPattern pattern = attention_pattern(config, p.i);
  CHECK(pattern.causal == p.causal);
  CHECK(pattern.window == p.window);
  CHECK(pattern.cross == p.cross);
}

TEST_CASE("There is no attention module before the first and behind the last") {
  const ModelConfig config = parse("whisper_tiny");
  const std::string message = "attention: expected a value from 0 to 11, got ";
  CHECK_THAT(error_of([&] { (void)attention_config(config, 12); }), ContainsSubstring(message));
  CHECK_THAT(error_of([&] { (void)attention_name(config, -1); }), ContainsSubstring(message));
  CHECK_THAT(error_of([&] { (void)attention_pattern(config, 12); }), ContainsSubstring(message));
}

TEST_CASE("What differs between the layers and towers of published models") {
  const auto v3 = std::get<DeepseekV3Config>(parse("deepseek_v3"));
  REQUIRE(v3.fp8);
  CHECK(v3.fp8->rows == 128);
  CHECK(v3.fp8->cols == 128);
  const double mscale = 0.1 * std::log(40.0) + 1;
  const double scale = attention_config(ModelConfig(v3), 0).scale;
  CHECK(std::abs(scale * std::sqrt(192.0) / (mscale * mscale) - 1) < 8 * 0x1p-53);
  CHECK_FALSE(
      std::get<DeepseekV3Config>(parse("deepseek_v3", R"({"quantization_config": null})")).fp8);
  // Gemma 3: sliding layers turn by 10000, the others by 1000000, in the 4B model 8 times slower.
  const ModelConfig gemma = parse("gemma3_4b");
  const auto slowest = [&](std::int64_t layer) {
    return attention_config(gemma, layer).rope.frequencies.at(127);
  };
  CHECK(slowest(0) == bda::rope_frequencies(256, 1e4).at(127));
  CHECK(slowest(5) == bda::rope_frequencies(256, 1e6).at(127) / 8);
  CHECK(attention_config(parse("gemma2_2b"), 0).logit_softcap == 50);
  CHECK(attention_config(parse("gemma3_1b"), 0).logit_softcap == 0);
  CHECK(attention_pattern(parse("t5_small"), 6).position_bias);
  CHECK_FALSE(attention_pattern(parse("t5_small"), 7).position_bias);
  CHECK(attention_count(parse("t5_small", R"({"architectures": ["T5EncoderModel"]})")) == 6);
  CHECK(attention_count(parse("t5_small", R"({"is_encoder_decoder": false})")) == 6);
  CHECK(attention_count(parse("t5_small", R"({"num_decoder_layers": 2})")) == 10);
  CHECK(attention_pattern(parse("bert_base", R"({"is_decoder": true})"), 0).causal);
  // A window from the third layer on.
  const ModelConfig qwen =
      parse("qwen2_7b", R"({"use_sliding_window": true, "max_window_layers": 2})");
  CHECK(attention_pattern(qwen, 1).window == 0);
  CHECK(attention_pattern(qwen, 2).window == 131072);
  // A window of null is none; one that is left out is Mistral's first.
  Json mistral = config_of("mistral_7b");
  mistral["sliding_window"] = nullptr;
  CHECK(attention_pattern(parse_config(mistral, "config.json"), 0).window == 0);
  mistral.erase("sliding_window");
  CHECK(attention_pattern(parse_config(mistral, "config.json"), 0).window == 4096);
}

struct Refusal {
  const char* name;
  std::string changes;  // a JSON merge patch
  std::string field;
  std::string given;
};

TEST_CASE("What bears on attention and is not implemented is refused by field and value") {
  const Refusal r = GENERATE(values<Refusal>({
      {"bert_base", R"({"position_embedding_type": "relative_key"})", "position_embedding_type",
       "\"relative_key\""},
      {"bert_base", R"({"add_cross_attention": true})", "add_cross_attention", "true"},
      {"bert_base", R"({"hidden_size": 770})", "hidden_size", "770"},
      {"bert_base", R"({"pruned_heads": {"1": [0]}})", "pruned_heads", "{\"1\":[0]}"},
      {"bert_base", R"({"embedding_size": 128})", "embedding_size", "128"},
      {"bert_base", R"({"quantization_config": {"bits": 8}})", "quantization_config",
       "{\"bits\":8}"},
      {"vit_base", R"({"head_dim": 32})", "head_dim", "32"},
      {"vit_base", R"({"num_attention_heads": 7})", "hidden_size", "768"},
      {"clip_vit_b32", R"({"text_config": {"hidden_size": 510}})", "text_config: hidden_size",
       "510"},
      {"clip_vit_b32", R"({"text_config": {"model_type": "gpt2"}})", "text_config: model_type",
       "\"gpt2\""},
      {"clip_vit_b32", R"({"text_config_dict": {"hidden_size": 768}})", "text_config_dict",
       "{\"hidden_size\":768}"},
      {"clip_vit_b32", R"({"vision_config": {"window": 3}})", "vision_config: window", "3"},
      {"clip_vit_b32", R"({"vision_config": 3})", "vision_config", "3"},
      {"whisper_tiny", R"({"is_encoder_decoder": false})", "is_encoder_decoder", "false"},
      {"whisper_tiny", R"({"decoder_attention_heads": 5})", "d_model", "384"},
      {"whisper_tiny", R"({"num_hidden_layers": 6})", "num_hidden_layers", "6"},
      {"opt_125m", R"({"num_key_value_heads": 4})", "num_key_value_heads", "4"},
      {"opt_125m", R"({"num_attention_heads": 11})", "hidden_size", "768"},
      {"t5_small", R"({"d_kv": null})", "d_kv", "no such field"},
      {"t5_small", R"({"scale": 2})", "scale", "2"},
      {"pythia_160m", R"({"rotary_pct": 0})", "rotary_pct", "0"},
      {"pythia_160m", R"({"rotary_pct": 1.5})", "rotary_pct", "1.5"},
      {"pythia_160m", R"({"rotary_pct": 0.27})", "rotary embedding", "17"},
      {"pythia_160m", R"({"rotary_pct": 0.01})", "rotary embedding", "0"},
      {"pythia_160m", R"({"rotary_emb_base": 0.5})", "rotary_emb_base", "0.5"},
      {"pythia_160m", R"({"rope_scaling": {"type": "dynamic", "factor": 2}})", "type",
       "\"dynamic\""},
      {"pythia_160m", R"({"rope_parameters": {"partial_rotary_factor": 0.5}})", "rotary_pct",
       "0.25"},
      {"phi_2", R"({"qk_layernorm": true})", "qk_layernorm", "true"},
      {"phi_2", R"({"num_key_value_heads": 5})", "num_attention_heads", "32"},
      {"phi_2", R"({"partial_rotary_factor": -0.4})", "partial_rotary_factor", "-0.4"},
      {"mistral_7b", R"({"num_key_value_heads": 5})", "num_key_value_heads", "5"},
      {"mistral_7b", R"({"attention_bias": true})", "attention_bias", "true"},
      {"mistral_7b", R"({"head_dim": 127})", "rotary embedding", "127"},
      {"mistral_7b", R"({"num_hidden_layers": 2000000000})", "num_hidden_layers", "2000000000"},
      {"mistral_7b", R"({"sliding_window": 0})", "sliding_window", "0"},
      {"qwen2_7b", R"({"use_mrope": true})", "use_mrope", "true"},
      {"qwen2_7b", R"({"layer_types": ["full_attention"]})", "layer_types", "[\"full_attention\"]"},
      {"qwen2_7b", R"({"max_window_layers": -1})", "max_window_layers", "-1"},
      {"qwen2_7b", R"({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}})", "type",
       "\"mrope\""},
      {"qwen3_8b", R"({"rms_norm_eps": 0})", "rms_norm_eps", "0"},
      {"qwen3_8b", R"({"dual_chunk_attention_config": {}})", "dual_chunk_attention_config", "{}"},
      {"gemma_2b", R"({"use_bidirectional_attention": true})", "use_bidirectional_attention",
       "true"},
      {"gemma2_2b", R"({"query_pre_attn_scalar": 0})", "query_pre_attn_scalar", "0"},
      {"gemma2_2b", R"({"attn_logit_softcapping": -1})", "attn_logit_softcapping", "-1"},
      {"gemma2_2b", R"({"sliding_window_size": 8})", "sliding_window_size", "8"},
      {"gemma3_1b", R"({"rope_local_base_freq": 0})", "rope_local_base_freq", "0"},
      {"gemma3_1b", R"({"rope_parameters": {"chunked_attention": {"rope_theta": 5.0}}})",
       "rope_parameters: chunked_attention", "{\"rope_theta\":5.0}"},
      {"gemma3_1b", R"({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}})",
       "full_attention: rope_type", "\"longrope\""},
      {"gemma3_4b", R"({"text_config": null})", "text_config", "no such field"},
      {"gemma3_4b", R"({"text_config": {"attention_sinks": true}})", "text_config: attention_sinks",
       "true"},
      {"deepseek_v3", R"({"attention_bias": true})", "attention_bias", "true"},
      {"deepseek_v3", R"({"index_topk": 2048})", "index_topk", "2048"},
      {"deepseek_v3", R"({"num_key_value_heads": 8})", "num_key_value_heads", "8"},
      {"deepseek_v3", R"({"quantization_config": {"quant_method": "gptq"}})", "quant_method",
       "\"gptq\""},
      {"deepseek_v3", R"({"quantization_config": {"fmt": "e5m2"}})", "fmt", "\"e5m2\""},
      {"deepseek_v3", R"({"quantization_config": {"weight_block_size": [128]}})",
       "weight_block_size", "[128]"},
      {"deepseek_v3", R"({"quantization_config": {"weight_block_size": [128, 0]}})",
       "weight_block_size", "[128,0]"},
      {"deepseek_v3", R"({"quantization_config": {"weight_block_size": null}})",
       "weight_block_size", "no such field"},
      {"deepseek_v3", R"({"quantization_config": {"group_size": 32}})", "group_size", "32"},
      {"deepseek_v3", R"({"quantization_config": "fp8"})", "quantization_config", "\"fp8\""},
      {"kimi_k2", R"({"rope_scaling": {"mscale_all_dim": 0, "mscale": 0.5}})", "mscale", "0.5"},
  }));
  INFO(r.name << " " << r.changes);
  const std::string message = error_of([&] { (void)parse(r.name, r.changes); });
  CHECK_THAT(message, ContainsSubstring("config.json: ") && ContainsSubstring(r.field) &&
                          ContainsSubstring(", got " + r.given));
}

}  // namespace

#include <bda/checkpoint/config.hpp>
#include <bda/checkpoint/load.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>
#include <variant>

#include "checkpoint/published_configs.hpp"
#include "checkpoint/temporary_folder.hpp"

namespace {

using bda::checkpoint::Activation;
using bda::checkpoint::attention_config;
using bda::checkpoint::DeepseekV2Config;
using bda::checkpoint::Gpt2Config;
using bda::checkpoint::Json;
using bda::checkpoint::LlamaConfig;
using bda::checkpoint::ModelConfig;
using bda::checkpoint::parse_config;
using bda_test::error_of;
using Catch::Matchers::ContainsSubstring;

/// A published config with some fields replaced.
Json with(const char* published, const std::string& changes) {
  Json json = Json::parse(published);
  json.update(Json::parse(changes));
  return json;
}

ModelConfig parse(const char* published, const std::string& changes = "{}") {
  return parse_config(with(published, changes), "config.json");
}

TEST_CASE("DeepSeek-V2-Lite's config.json is read as published") {
  const auto c = std::get<DeepseekV2Config>(parse(bda_test::kDeepseekV2Lite));
  CHECK(c.num_hidden_layers == 27);
  CHECK_FALSE(c.q_lora_rank);
  CHECK_FALSE(c.is_moe[0]);
  CHECK(std::count(c.is_moe.begin(), c.is_moe.end(), true) == 26);
  CHECK(c.n_routed_experts == 64);
  CHECK(c.n_shared_experts == 2);
  CHECK(c.routing.experts_per_token == 6);
  CHECK(c.routing.groups == 1);
  CHECK_FALSE(c.routing.normalize);
  CHECK(c.hidden_act == Activation::kSilu);

  const bda::AttentionConfig a = attention_config(ModelConfig(c), 3);
  bda::validate(a);
  CHECK(a.query_dim == 2048);
  CHECK(a.kv_dim == 512);
  CHECK(a.heads == 16);
  CHECK(a.qk_dim == 128);
  CHECK(a.rope_dim == 64);
  CHECK(a.v_dim == 128);
  CHECK(a.shared_rope_key);
  CHECK(a.rope.style == bda::RopeStyle::kInterleaved);
  // 192^-1/2 times YaRN's mscale squared, mscale = 0.1 * 0.707 ln 40 + 1 = 1.26080..; both sides
  // take a handful of roundings, hence 8 units of double.
  const double mscale = 0.1 * 0.707 * std::log(40.0) + 1;
  CHECK(std::abs(a.scale * std::sqrt(192.0) / (mscale * mscale) - 1) < 8 * 0x1p-53);
  CHECK(a.rope.magnitude == 1);  // mscale and mscale_all_dim are the same
}

TEST_CASE("DeepSeek-V2's config.json is read: q_lora and experts by group") {
  const auto c =
      std::get<DeepseekV2Config>(parse(bda_test::kDeepseekV2Lite, bda_test::kDeepseekV2Changes));
  CHECK(c.q_lora_rank == 1536);
  CHECK(c.routing.groups == 8);
  CHECK(c.routing.groups_per_token == 3);
  CHECK(c.routing.scale == 16);
  CHECK(attention_config(ModelConfig(c), 0).query_dim == 1536);
}

TEST_CASE("The layers with experts follow either spelling") {
  const auto moe_layers = [](const std::string& changes) {
    return std::get<DeepseekV2Config>(parse(bda_test::kDeepseekV2Lite, changes)).is_moe;
  };
  CHECK(
      moe_layers(R"({"num_hidden_layers": 6, "first_k_dense_replace": 2, "moe_layer_freq": 2})") ==
      std::vector<bool>{false, false, true, false, true, false});
  CHECK(moe_layers(R"({"num_hidden_layers": 3, "first_k_dense_replace": null,
                       "mlp_layer_types": ["sparse", "dense", "sparse"]})") ==
        std::vector<bool>{true, false, true});
  CHECK(moe_layers(R"({"num_hidden_layers": 2, "n_routed_experts": null})") ==
        std::vector<bool>{false, false});
}

TEST_CASE("GPT-2's config.json is read as published") {
  const auto c = std::get<Gpt2Config>(parse(bda_test::kGpt2));
  CHECK(c.n_inner == 4 * 768);
  CHECK(c.tie_word_embeddings);
  CHECK(c.activation_function == Activation::kGeluTanh);
  CHECK(c.layer_norm_epsilon == 1e-5);
  const bda::AttentionConfig a = attention_config(ModelConfig(c), 0);
  bda::validate(a);
  CHECK(a.qk_dim == 64);
  CHECK(a.rope_dim == 0);
  CHECK(a.scale == 0.125);
  const ModelConfig by_layer =
      parse(bda_test::kGpt2, R"({"scale_attn_by_inverse_layer_idx": true})");
  CHECK(attention_config(by_layer, 3).scale == 0.125 / 4);
  CHECK(attention_config(parse(bda_test::kGpt2, R"({"scale_attn_weights": false})"), 0).scale == 1);
}

TEST_CASE("Llama's config.json is read as published") {
  const auto two = std::get<LlamaConfig>(parse(bda_test::kLlama2));
  CHECK(two.head_dim == 128);
  CHECK(two.rms_norm_eps == 1e-5);
  CHECK_FALSE(two.tie_word_embeddings);
  const auto three = std::get<LlamaConfig>(parse(bda_test::kLlama32));
  CHECK(three.tie_word_embeddings);
  const bda::AttentionConfig a = attention_config(ModelConfig(three), 0);
  bda::validate(a);
  CHECK(a.heads == 32);
  CHECK(a.kv_heads == 8);
  CHECK(a.qk_dim == 0);
  CHECK(a.rope_dim == 64);
  CHECK(a.v_dim == 64);
  CHECK(a.scale == 0.125);
  CHECK(a.rope.style == bda::RopeStyle::kHalfSplit);
  CHECK(std::get<LlamaConfig>(parse(bda_test::kTinyLlama)).num_key_value_heads == 4);
  // Llama 1 had neither field.
  Json one = Json::parse(bda_test::kLlama2);
  one.erase("num_key_value_heads");
  one.erase("pretraining_tp");
  CHECK(std::get<LlamaConfig>(parse_config(one, "config.json")).num_key_value_heads == 32);
}

struct Refusal {
  const char* published;
  std::string changes;
  std::string field;  // as the error names it
  std::string given;  // as the error quotes it
};

TEST_CASE("What is not implemented is refused by field and value") {
  using bda_test::kDeepseekV2Lite;
  using bda_test::kGpt2;
  using bda_test::kLlama2;
  const Refusal refusal = GENERATE(values<Refusal>({
      {kLlama2, R"({"model_type": "mamba"})", "model_type", "\"mamba\""},
      {kLlama2, R"({"model_type": null})", "model_type", "null"},
      {kLlama2, R"({"model_type": 3})", "model_type", "3"},
      {kLlama2, R"({"sliding_window": 4096})", "sliding_window", "4096"},
      {kLlama2, R"({"quantization_config": {"bits": 4}})", "quantization_config", "{\"bits\":4}"},
      {kLlama2, R"({"hidden_act": "relu2"})", "hidden_act", "\"relu2\""},
      {kLlama2, R"({"is_encoder_decoder": true})", "is_encoder_decoder", "true"},
      {kLlama2, R"({"pruned_heads": {"0": [1]}})", "pruned_heads", "{\"0\":[1]}"},
      {kLlama2, R"({"vocab_size": null})", "vocab_size", "null"},
      {kLlama2, R"({"vocab_size": 0})", "vocab_size", "0"},
      {kLlama2, R"({"vocab_size": -5})", "vocab_size", "-5"},
      {kLlama2, R"({"vocab_size": 32000.5})", "vocab_size", "32000.5"},
      {kLlama2, R"({"vocab_size": "32000"})", "vocab_size", "\"32000\""},
      {kLlama2, R"({"hidden_size": 4294967296})", "hidden_size", "4294967296"},
      {kLlama2, R"({"hidden_size": 18446744073709551615})", "hidden_size", "18446744073709551615"},
      {kLlama2, R"({"hidden_size": 4097})", "hidden_size", "4097"},
      {kLlama2, R"({"head_dim": 127})", "rotary embedding", "127"},
      {kLlama2, R"({"head_dim": 2147483646})", "rotary embedding", "2147483646"},
      {kDeepseekV2Lite, R"({"num_hidden_layers": 2147483647})", "num_hidden_layers", "2147483647"},
      {kLlama2, R"({"num_key_value_heads": 5})", "num_key_value_heads", "5"},
      {kLlama2, R"({"rms_norm_eps": 0})", "rms_norm_eps", "0"},
      {kLlama2, R"({"rms_norm_eps": "1e-5"})", "rms_norm_eps", "\"1e-5\""},
      {kLlama2, R"({"attention_bias": 1})", "attention_bias", "1"},
      {kLlama2, R"({"rope_theta": -1})", "rope_theta", "-1"},
      {kLlama2, R"({"rope_theta": 0.5})", "rope_theta", "0.5"},
      {kGpt2, R"({"add_cross_attention": true})", "add_cross_attention", "true"},
      {kGpt2, R"({"activation_function": "relu"})", "activation_function", "\"relu\""},
      {kGpt2, R"({"n_embd": 770})", "n_embd", "770"},
      {kGpt2, R"({"n_ctx": 512})", "n_ctx", "512"},
      {kGpt2, R"({"scale_attn_weights": "yes"})", "scale_attn_weights", "\"yes\""},
      {kGpt2, R"({"rotary_dim": 64})", "rotary_dim", "64"},
      {kDeepseekV2Lite, R"({"topk_method": "noaux_tc"})", "topk_method", "\"noaux_tc\""},
      {kDeepseekV2Lite, R"({"scoring_func": "sigmoid"})", "scoring_func", "\"sigmoid\""},
      {kDeepseekV2Lite, R"({"attention_bias": true})", "attention_bias", "true"},
      {kDeepseekV2Lite, R"({"mlp_bias": true})", "mlp_bias", "true"},
      {kDeepseekV2Lite, R"({"num_key_value_heads": 8})", "num_key_value_heads", "8"},
      {kDeepseekV2Lite, R"({"qk_head_dim": 128})", "qk_head_dim", "128"},
      {kDeepseekV2Lite, R"({"head_dim": 128})", "head_dim", "128"},
      {kDeepseekV2Lite, R"({"num_experts_per_tok": 65})", "num_experts_per_tok", "65"},
      {kDeepseekV2Lite, R"({"num_experts_per_tok": null})", "num_experts_per_tok", "null"},
      {kDeepseekV2Lite, R"({"moe_intermediate_size": null})", "moe_intermediate_size", "null"},
      {kDeepseekV2Lite, R"({"first_k_dense_replace": -1})", "first_k_dense_replace", "-1"},
      {kDeepseekV2Lite, R"({"mlp_layer_types": ["dense"]})", "mlp_layer_types", "[\"dense\"]"},
      {kDeepseekV2Lite, R"({"num_hidden_layers": 2, "mlp_layer_types": ["sparse", "sparse"]})",
       "mlp_layer_types", "[\"sparse\",\"sparse\"]"},
      {kDeepseekV2Lite, R"({"num_hidden_layers": 2, "mlp_layer_types": ["dense", "linear"]})",
       "mlp_layer_types", "[\"dense\",\"linear\"]"},
      {kDeepseekV2Lite, R"({"topk_method": "group_limited_greedy", "n_group": 7})", "n_group", "7"},
      {kDeepseekV2Lite, R"({"topk_method": "group_limited_greedy", "n_group": null})", "n_group",
       "null"},
      {kDeepseekV2Lite, R"({"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 9})",
       "topk_group", "9"},
      // 16 groups of 4 experts, one of them kept: 6 experts cannot be chosen.
      {kDeepseekV2Lite,
       R"({"topk_method": "group_limited_greedy", "n_group": 16, "topk_group": 1})",
       "num_experts_per_tok", "6"},
  }));
  INFO(refusal.changes);
  const std::string message = error_of([&] { (void)parse(refusal.published, refusal.changes); });
  CHECK_THAT(message, ContainsSubstring("config.json: ") && ContainsSubstring(refusal.field) &&
                          ContainsSubstring(", got " + refusal.given));
}

TEST_CASE("An unknown model type gets the list of the known ones, and the way around it") {
  CHECK_THAT(error_of([&] { (void)parse(bda_test::kLlama2, R"({"model_type": "mamba"})"); }),
             ContainsSubstring("model_type: expected bert, clip, ") &&
                 ContainsSubstring("deepseek_v3, ") && ContainsSubstring("kimi_k2, llama, ") &&
                 ContainsSubstring("whisper, or a description of the tensors (--map FILE)") &&
                 ContainsSubstring("got \"mamba\""));
}

TEST_CASE("A field that is unknown but unset is no reason to refuse") {
  CHECK_NOTHROW(parse(bda_test::kLlama2, R"({"sliding_window": null, "layer_types": null})"));
}

TEST_CASE("read_config names the file, whether it is missing, damaged or ambiguous") {
  const bda_test::TemporaryFolder folder;
  const auto read = [&](const std::string& text) {
    const auto path = folder.write("config.json", text);
    return error_of([&] { (void)bda::checkpoint::read_config(path); });
  };
  CHECK_THAT(error_of([&] { (void)bda::checkpoint::read_config(folder.path() / "config.json"); }),
             ContainsSubstring("config.json") && ContainsSubstring("No such file"));
  CHECK_THAT(read(""), ContainsSubstring("config.json: expected well-formed JSON"));
  CHECK_THAT(read("[]"), ContainsSubstring("config.json: expected a JSON object, got []"));
  CHECK_THAT(read(R"({"model_type": "llama", "model_type": "gpt2"})"),
             ContainsSubstring("config.json") && ContainsSubstring("\"model_type\" twice"));
}

}  // namespace

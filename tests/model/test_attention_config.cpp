#include <bda/model/attention_config.hpp>
#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <limits>

#include "model/layers.hpp"
#include "support/error_of.hpp"

namespace {

using bda::AttentionConfig;

TEST_CASE("Widths that follow from a config") {
  AttentionConfig c = bda_test::grouped_layer().config;
  CHECK(c.head_dim() == 9);
  CHECK(c.group_size() == 3);
  CHECK(c.rope_key_heads() == 2);
  c.shared_rope_key = true;
  CHECK(c.rope_key_heads() == 1);
}

TEST_CASE("Configs of every kind of attention are valid") {
  AttentionConfig c = bda_test::grouped_layer().config;
  CHECK_NOTHROW(validate(c));
  CHECK_NOTHROW(validate(bda_test::latent_layer().config));
  c.logit_softcap = 50;
  CHECK_NOTHROW(validate(c));
  c.rope_dim = 0;  // GPT-2
  c.rope.frequencies.clear();
  CHECK_NOTHROW(validate(c));
  c = bda_test::grouped_layer().config;
  c.qk_dim = 0;  // Llama
  CHECK_NOTHROW(validate(c));
}

TEST_CASE("A config that describes no attention is refused by field and value") {
  struct Rule {
    std::string name, given;
    std::function<void(AttentionConfig&)> spoil;
  };
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Rule> rules{
      {"config.query_dim", "0", [](auto& c) { c.query_dim = 0; }},
      {"config.kv_dim", "-3", [](auto& c) { c.kv_dim = -3; }},
      {"config.out_dim", "0", [](auto& c) { c.out_dim = 0; }},
      {"config.kv_heads", "0", [](auto& c) { c.kv_heads = 0; }},
      {"config.heads", "5", [](auto& c) { c.heads = 5; }},
      {"config.heads", "0", [](auto& c) { c.heads = 0; }},
      {"config.qk_dim", "-1", [](auto& c) { c.qk_dim = -1; }},
      {"config.rope_dim", "-2", [](auto& c) { c.rope_dim = -2; }},
      {"config.qk_dim + config.rope_dim", "0", [](auto& c) { c.qk_dim = c.rope_dim = 0; }},
      {"config.v_dim", "0", [](auto& c) { c.v_dim = 0; }},
      {"config.rope_dim % 2", "1", [](auto& c) { c.rope_dim = 3; }},
      {"config.rope.frequencies.size", "2", [](auto& c) { c.rope_dim = 6; }},
      {"config.scale", "0.000000", [](auto& c) { c.scale = 0; }},
      {"config.scale", "-1.000000", [](auto& c) { c.scale = -1; }},
      {"config.scale", "inf", [=](auto& c) { c.scale = inf; }},
      {"config.scale", "nan", [=](auto& c) { c.scale = nan; }},
      {"config.logit_softcap", "-1.000000", [](auto& c) { c.logit_softcap = -1; }},
      {"config.logit_softcap", "inf", [=](auto& c) { c.logit_softcap = inf; }},
  };
  for (const Rule& rule : rules) {
    AttentionConfig c = bda_test::grouped_layer().config;
    rule.spoil(c);
    CAPTURE(rule.name, rule.given);
    const bda::Error error = bda_test::error_of([&] { validate(c); });
    CHECK(error.name() == rule.name);
    CHECK(error.given() == rule.given);
  }
}

}  // namespace

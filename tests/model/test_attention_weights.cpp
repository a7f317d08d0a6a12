#include <bda/model/attention_weights.hpp>
#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <limits>

#include "model/layers.hpp"
#include "support/error_of.hpp"

namespace {

using bda::IndexSet;
using bda_test::error_of;
using bda_test::grouped_layer;
using bda_test::latent_layer;
using Weights = bda::AttentionWeights<float>;

TEST_CASE("Complete layers are valid") {
  CHECK_NOTHROW(validate(grouped_layer()));
  CHECK_NOTHROW(validate(latent_layer()));
  CHECK_NOTHROW(validate(grouped_layer<double>()));
}

TEST_CASE("Biases, norms and sinks are optional") {
  Weights w = grouped_layer();
  w.q_bias.clear();
  w.k.bias.clear();
  w.k_rope.bias.clear();
  w.v.bias.clear();
  w.o_bias.clear();
  w.q_head_norm.clear();
  w.k_head_norm.clear();
  w.sinks.clear();
  CHECK_NOTHROW(validate(w));
}

TEST_CASE("A decomposed projection has kv_dim - width rows") {
  Weights w = grouped_layer();
  w.k.basis = IndexSet(11, {0, 2, 4, 6, 8});
  w.k.weight = bda::Matrix<float>(11 - 5, 2 * 5);
  w.v.basis = IndexSet::slice(11, 4, 7);
  w.v.weight = bda::Matrix<float>(11 - 7, 2 * 7);
  CHECK_NOTHROW(validate(w));
  CHECK(w.k.decomposed());
  CHECK_FALSE(w.k_rope.decomposed());
}

TEST_CASE("The widths of the two input sequences") {
  CHECK(grouped_layer().hidden_dim() == 13);
  CHECK(grouped_layer().context_dim() == 11);
  CHECK(latent_layer().hidden_dim() == 17);
  CHECK(latent_layer().context_dim() == 17);
}

TEST_CASE("Every stored tensor is visited once and counted") {
  std::vector<std::string> names;
  std::int64_t values = 0;
  const auto count = [&](std::string_view name, const float*, std::int64_t n) {
    names.emplace_back(name);
    values += n;
  };
  const Weights grouped = grouped_layer();
  grouped.for_each_tensor(count);
  CHECK(names == std::vector<std::string>{"q", "q_bias", "k.weight", "k.bias", "k_rope.weight",
                                          "k_rope.bias", "v.weight", "v.bias", "o", "o_bias",
                                          "q_head_norm", "k_head_norm"});
  const std::int64_t expected = 14 * 54 + 12 * (10 + 8 + 14) + 42 * 9 + 9 + 9 + 9;
  CHECK(values == expected);
  CHECK(grouped.bytes() == 4 * expected);

  names.clear();
  latent_layer().for_each_tensor(count);
  CHECK(names.size() == 16);
  CHECK(names.back() == "latent.q_norm");
}

struct Rule {
  std::string name, given;
  std::function<void(Weights&)> spoil;
};

void check_rules(const Weights& good, const std::vector<Rule>& rules) {
  for (const Rule& rule : rules) {
    Weights w = good;
    rule.spoil(w);
    CAPTURE(rule.name, rule.given);
    const bda::Error error = error_of([&] { validate(w); });
    CHECK(error.name() == rule.name);
    CHECK(error.given() == rule.given);
  }
}

TEST_CASE("A tensor that does not fit the config is refused by name and extent") {
  check_rules(
      grouped_layer(),
      {{"q.rows", "12", [](Weights& w) { w.q = bda::Matrix<float>(12, 54); }},
       {"q.cols", "53", [](Weights& w) { w.q = bda::Matrix<float>(13, 53); }},
       {"q.values.size", "701", [](Weights& w) { w.q.values.pop_back(); }},
       {"q_bias.size", "53", [](Weights& w) { w.q_bias.pop_back(); }},
       {"k.weight.rows", "10", [](Weights& w) { w.k.weight = bda::Matrix<float>(10, 10); }},
       {"k.weight.cols", "9", [](Weights& w) { w.k.weight = bda::Matrix<float>(11, 9); }},
       {"k.bias.size", "11", [](Weights& w) { w.k.bias.push_back(0); }},
       {"k_rope.weight.cols", "4", [](Weights& w) { w.k_rope.weight = bda::Matrix<float>(11, 4); }},
       {"k_rope.bias.size", "7", [](Weights& w) { w.k_rope.bias.pop_back(); }},
       {"v.weight.cols", "7", [](Weights& w) { w.v.weight = bda::Matrix<float>(11, 7); }},
       {"v.bias.size", "13", [](Weights& w) { w.v.bias.pop_back(); }},
       {"o.rows", "41", [](Weights& w) { w.o = bda::Matrix<float>(41, 9); }},
       {"o.cols", "8", [](Weights& w) { w.o = bda::Matrix<float>(42, 8); }},
       {"o_bias.size", "8", [](Weights& w) { w.o_bias.pop_back(); }},
       {"q_head_norm.size", "8", [](Weights& w) { w.q_head_norm.pop_back(); }},
       {"k_head_norm.size", "8", [](Weights& w) { w.k_head_norm.pop_back(); }},
       {"sinks.size", "5", [](Weights& w) { w.sinks.pop_back(); }},
       {"config.out_dim", "0", [](Weights& w) { w.config.out_dim = 0; }}});
}

TEST_CASE("A basis that does not fit its projection is refused") {
  check_rules(grouped_layer(),
              {{"k.basis.dim", "12", [](Weights& w) { w.k.basis = IndexSet::slice(12, 0, 5); }},
               {"k.basis.size", "4", [](Weights& w) { w.k.basis = IndexSet::slice(11, 0, 4); }},
               {"k.weight.rows", "11", [](Weights& w) { w.k.basis = IndexSet::slice(11, 0, 5); }}});
}

TEST_CASE("A latent that does not fit is refused") {
  check_rules(
      latent_layer(),
      {{"latent.kv_a.cols", "10", [](Weights& w) { w.latent->kv_a = bda::Matrix<float>(17, 10); }},
       {"latent.kv_norm.size", "0", [](Weights& w) { w.latent->kv_norm.clear(); }},
       {"latent.q_a.rows", "16", [](Weights& w) { w.latent->q_a = bda::Matrix<float>(16, 13); }},
       {"latent.q_a.cols", "12", [](Weights& w) { w.latent->q_a = bda::Matrix<float>(17, 12); }},
       {"latent.q_norm.size", "12", [](Weights& w) { w.latent->q_norm.pop_back(); }},
       {"q.rows", "13", [](Weights& w) { w.latent->q_a = {}; }},
       {"k_rope.weight.rows", "11",
        [](Weights& w) { w.k_rope.weight = bda::Matrix<float>(11, 4); }},
       {"latent.norm_epsilon", "-1.000000", [](Weights& w) { w.latent->norm_epsilon = -1; }}});
}

TEST_CASE("A value that is not finite is refused by tensor and index") {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  check_rules(grouped_layer(), {{"q[57]", "nan", [=](Weights& w) { w.q(1, 3) = nan; }},
                                {"k.weight[0]", "inf", [=](Weights& w) { w.k.weight(0, 0) = inf; }},
                                {"v.bias[13]", "-inf", [=](Weights& w) { w.v.bias[13] = -inf; }},
                                {"o_bias[8]", "nan", [=](Weights& w) { w.o_bias[8] = nan; }}});
  check_rules(latent_layer(),
              {{"latent.kv_norm[2]", "inf", [=](Weights& w) { w.latent->kv_norm[2] = inf; }}});
}

}  // namespace

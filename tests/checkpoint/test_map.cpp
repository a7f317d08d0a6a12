#include <bda/checkpoint.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::fixture;
using Catch::Matchers::ContainsSubstring;

std::vector<std::vector<double>> tensors_of(const bda::AttentionWeights<double>& w) {
  std::vector<std::vector<double>> tensors;
  w.for_each_tensor([&](std::string_view, const double* values, std::int64_t count) {
    tensors.emplace_back(values, values + count);
  });
  return tensors;
}

struct Description {
  const char* folder;
  const char* map;  // of all its modules
};

const Description kBert{"attention/bert", R"({"attention": [{
    "name": "encoder.layer.{}.attention", "layers": 2, "heads": 3, "head_dim": 14,
    "query_dim": 42, "scale": 0.2672612419124244, "q": "self.query", "k": "self.key",
    "v": "self.value", "o": "output.dense", "biases": ["q", "k", "v", "o"], "causal": false}]})"};
const Description kWhisper{"attention/whisper", R"({"attention": [
    {"name": "model.encoder.layers.{}.self_attn", "layers": 2, "heads": 2, "head_dim": 21,
     "query_dim": 42, "scale": 0.2182178902359924, "q": "q_proj", "k": "k_proj", "v": "v_proj",
     "o": "out_proj", "biases": ["q", "v", "o"], "causal": false},
    {"name": "model.decoder.layers.0.self_attn", "layers": 1, "heads": 3, "head_dim": 14,
     "query_dim": 42, "scale": 0.2672612419124244, "q": "q_proj", "k": "k_proj", "v": "v_proj",
     "o": "out_proj", "biases": ["q", "v", "o"]},
    {"name": "model.decoder.layers.{}.encoder_attn", "layers": 1, "heads": 3, "head_dim": 14,
     "query_dim": 42, "scale": 0.2672612419124244, "q": "q_proj", "k": "k_proj", "v": "v_proj",
     "o": "out_proj", "biases": ["q", "v", "o"], "causal": false, "cross": true}]})"};
const Description kGpt2{"gpt2", R"({"attention": [{
    "name": "transformer.h.{}.attn", "layers": 2, "heads": 3, "head_dim": 12, "query_dim": 36,
    "scale": 0.2886751345948129, "qkv": "c_attn", "qkv_order": "projections", "o": "c_proj",
    "biases": ["q", "k", "v", "o"], "stored": "in_out"}]})"};
const Description kNeox{"attention/gpt_neox", R"({"attention": [{
    "name": "gpt_neox.layers.{}.attention", "layers": 2, "heads": 3, "head_dim": 14,
    "query_dim": 42, "scale": 0.2672612419124244, "qkv": "query_key_value", "qkv_order": "heads",
    "o": "dense", "biases": ["q", "k", "v", "o"],
    "rotary": {"channels": 4, "part": "first", "style": "half_split", "rope_theta": 100}}]})"};
const Description kGemma3{"attention/gemma3", R"({"attention": [
    {"name": "model.layers.0.self_attn", "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 10,
     "query_dim": 44, "scale": 0.3779644730092272, "q": "q_proj", "k": "k_proj", "v": "v_proj",
     "o": "o_proj", "rotary": {"style": "half_split", "rope_theta": 50}, "window": 4,
     "head_norm": {"q": "q_norm", "k": "k_norm", "epsilon": 1e-6, "offset": 1}},
    {"name": "model.layers.1.self_attn", "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 10,
     "query_dim": 44, "scale": 0.3779644730092272, "q": "q_proj", "k": "k_proj", "v": "v_proj",
     "o": "o_proj", "rotary": {"style": "half_split", "rope_theta": 500, "rope_type": "linear",
                               "factor": 4},
     "head_norm": {"q": "q_norm", "k": "k_norm", "epsilon": 1e-6, "offset": 1}}]})"};

TEST_CASE("A description of a known family's tensors gives what its adapter gives") {
  const Description d = GENERATE(values<Description>({kBert, kWhisper, kGpt2, kNeox, kGemma3}));
  INFO(d.folder);
  const bda_test::TemporaryFolder folder;
  const auto path = folder.write("map.json", d.map);
  const Checkpoint known = open_checkpoint(fixture(d.folder));
  const Checkpoint mapped = open_checkpoint(fixture(d.folder), path);
  REQUIRE(attention_count(mapped.config) == attention_count(known.config));
  for (std::int64_t i = 0; i < attention_count(known.config); ++i) {
    INFO(i);
    CHECK_THAT(attention_name(mapped.config, i),
               Catch::Matchers::EndsWith(attention_name(known.config, i)));
    const auto expected = load_attention_layer<double>(known, i);
    const auto given = load_attention_layer<double>(mapped, i);
    CHECK(tensors_of(given) == tensors_of(expected));
    CHECK(given.head_norm_epsilon == expected.head_norm_epsilon);
    const bda::AttentionConfig &a = given.config, &b = expected.config;
    CHECK((a.query_dim == b.query_dim && a.kv_dim == b.kv_dim && a.out_dim == b.out_dim));
    CHECK((a.heads == b.heads && a.kv_heads == b.kv_heads));
    CHECK((a.qk_dim == b.qk_dim && a.rope_dim == b.rope_dim && a.v_dim == b.v_dim));
    CHECK(a.rope.frequencies == b.rope.frequencies);
    CHECK(a.rope.style == b.rope.style);
    CHECK(std::abs(a.scale - b.scale) <= 4 * 0x1p-53 * b.scale);  // written with 16 digits
    const AttentionPattern p = attention_pattern(mapped.config, i),
                           q = attention_pattern(known.config, i);
    CHECK((p.causal == q.causal && p.window == q.window && p.cross == q.cross &&
           p.position_bias == q.position_bias));
  }
}

TEST_CASE("Rotated channels may be a head's last, as in the library's own layout") {
  const Checkpoint first{parse_map(Json::parse(kNeox.map), "map"),
                         TensorStore(fixture(kNeox.folder))};
  Json map = Json::parse(kNeox.map);
  map["attention"][0]["rotary"]["part"] = "last";
  const Checkpoint last{parse_map(map, "map"), TensorStore(fixture(kNeox.folder))};
  const auto a = load_attention_layer<double>(first, 0), b = load_attention_layer<double>(last, 0);
  constexpr std::int64_t heads = 3, width = 14, rope = 4, nope = width - rope;
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t i = 0; i < width; ++i) {
      // The i-th stored channel of head h, for both.
      const std::int64_t at = h * width + (i < rope ? nope + i : i - rope);
      CHECK(a.q(5, at) == b.q(5, h * width + i));
      const auto key = [&](const auto& w, bool rotated, std::int64_t channel) {
        return rotated ? w.k_rope.weight(5, h * rope + channel) : w.k.weight(5, h * nope + channel);
      };
      CHECK(key(a, i < rope, i < rope ? i : i - rope) ==
            key(b, i >= nope, i >= nope ? i - nope : i));
    }
}

struct Refusal {
  std::string changes;  // to the one module of a description
  std::string message;
};

TEST_CASE("A description that is incomplete, unknown or contradictory is refused by field") {
  const Refusal refusal = GENERATE(values<Refusal>({
      {R"({"scale": null})", "map: attention[0]: scale: expected a positive number"},
      {R"({"heads": 0})", "attention[0]: heads: expected an integer from 1"},
      {R"({"heads": 2147483647})", "heads: expected at most 2147483647 channels in all"},
      {R"({"kv_heads": 2})", "kv_heads: expected a divisor of heads = 3, got 2"},
      {R"({"name": ""})", "name: expected a name"},
      {R"({"name": "h.attn"})", "name: expected {} in the place of the layer"},
      {R"({"layers": null})", "layers: expected an integer"},
      {R"({"o": null})", "o: expected a name"},
      {R"({"q": "wq"})", "q: expected no name beside qkv"},
      {R"({"qkv": null})", "q: expected a name"},
      {R"({"qkv_order": "interleaved"})", "qkv_order: expected \"projections\" or \"heads\""},
      {R"({"qkv_order": "heads", "kv_heads": 1})", "qkv_order: expected \"projections\""},
      {R"({"kv_dim": 20})", "kv_dim: expected query_dim"},
      {R"({"biases": ["q", "x"]})", "biases: expected a list of q, k, v and o"},
      {R"({"biases": ["q", "v"]})", "biases: expected q, k and v together"},
      {R"({"stored": "rows"})", "stored: expected \"out_in\" or \"in_out\""},
      {R"({"rotary": {"channels": 20, "style": "half_split", "rope_theta": 100}})",
       "attention[0].rotary: channels: expected at most head_dim = 12, got 20"},
      {R"({"rotary": {"channels": 5, "style": "half_split", "rope_theta": 100}})",
       "width of the rotary embedding"},
      {R"({"rotary": {"rope_theta": 100}})", "rotary: style: expected"},
      {R"({"rotary": {"style": "half_split"}})", "rotary: rope_theta: expected"},
      {R"({"rotary": {"style": "half_split", "rope_theta": 100, "rope_type": "longrope"}})",
       "rope_type: expected one of default, linear, llama3, yarn, got \"longrope\""},
      {R"({"rotary": {"style": "half_split", "rope_theta": 100, "factor": 2}})",
       "rotary: factor: expected a field that this library implements"},
      {R"({"head_norm": {"q": "q_norm", "epsilon": 1e-6}})", "head_norm: k: expected a name"},
      {R"({"head_norm": {"q": "a", "k": "b", "epsilon": 1e-6, "mean": true}})", "mean"},
      {R"({"rotary": {"channels": 4, "style": "half_split", "rope_theta": 100},
           "head_norm": {"q": "a", "k": "b", "epsilon": 1e-6}})",
       "head_norm: expected none"},
      {R"({"causal": 1})", "causal: expected true or false"},
      {R"({"window": -1})", "window: expected an integer from 1"},
      {R"({"logit_softcap": 0})", "logit_softcap: expected a positive number"},
      {R"({"alibi": true})", "attention[0]: alibi: expected a field that this library implements"},
  }));
  INFO(refusal.changes);
  Json map = Json::parse(kGpt2.map);
  map["attention"][0].update(Json::parse(refusal.changes));
  CHECK_THAT(error_of([&] { (void)parse_map(map, "map"); }), ContainsSubstring(refusal.message));
}

TEST_CASE("A description must be a list of objects and nothing else") {
  const auto parse = [](const char* text) {
    return error_of([&] { (void)parse_map(Json::parse(text), "map"); });
  };
  CHECK_THAT(parse("{}"), ContainsSubstring("map: attention: expected a list"));
  CHECK_THAT(parse(R"({"attention": []})"), ContainsSubstring("attention: expected a list"));
  CHECK_THAT(parse(R"({"attention": [3]})"), ContainsSubstring("attention[0]: expected an object"));
  CHECK_THAT(parse(R"({"attention": [{}], "model": "x"})"), ContainsSubstring("map: model: "));
}

TEST_CASE("What a description names must be in the checkpoint, in the shape it says") {
  Json map = Json::parse(kGpt2.map);
  const auto load = [&] {
    const Checkpoint checkpoint{parse_map(map, "map"), TensorStore(fixture("gpt2"))};
    return error_of([&] { (void)load_attention_layer<double>(checkpoint, 1); });
  };
  map["attention"][0]["o"] = "proj";
  CHECK_THAT(load(), ContainsSubstring("expected a tensor transformer.h.1.attn.proj.weight"));
  map["attention"][0]["o"] = "c_proj";
  map["attention"][0]["stored"] = "out_in";
  CHECK_THAT(load(), ContainsSubstring("c_attn.weight.shape: expected [108, 36]"));
}

TEST_CASE("A checkpoint that is described has no language model that the library runs") {
  const Checkpoint checkpoint{parse_map(Json::parse(kGpt2.map), "map"),
                              TensorStore(fixture("gpt2"))};
  CHECK_THAT(error_of([&] { (void)load_transformer<double>(checkpoint); }),
             ContainsSubstring("a language model that the library runs"));
}

}  // namespace

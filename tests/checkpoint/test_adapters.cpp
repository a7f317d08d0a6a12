#include <bda/checkpoint.hpp>
#include <bda/linalg/scalar.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::fixture;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

/// The stored element (i, j) of a matrix, or i of a vector, bit for bit.
template <class T>
class Stored {
 public:
  explicit Stored(const Tensor& tensor)
      : bytes_(tensor.bytes), cols_(tensor.shape.size() > 1 ? tensor.shape[1] : 1) {
    REQUIRE(static_cast<std::size_t>(tensor.type.bits) == 8 * sizeof(T));
  }
  T operator()(std::int64_t i, std::int64_t j = 0) const {
    T value;
    std::memcpy(static_cast<void*>(&value),
                bytes_.data() + static_cast<std::size_t>(i * cols_ + j) * sizeof(T), sizeof(T));
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  std::int64_t cols_;
};

template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

/// Whether every element (i, j) of `m` is, bit for bit, the element of `stored` that `at` names.
template <class T, class At>
bool matches(const bda::Matrix<T>& m, std::int64_t rows, std::int64_t cols, const At& at) {
  if (m.rows != rows || m.cols != cols) return false;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j)
      if (!same_bits(m(i, j), T(at(i, j)))) return false;
  return true;
}

TEST_CASE("DeepSeek-V2's tensors come out transposed and split, bit for bit") {
  using T = Eigen::half;
  const Checkpoint checkpoint = open_checkpoint(fixture("deepseek_v2_q_lora"));
  const auto model = load_transformer<T>(checkpoint);
  const std::string name = "model.layers.1.";
  const auto stored = [&](const std::string& tensor) {
    return Stored<T>(checkpoint.tensors.at(name + tensor));
  };
  constexpr std::int64_t hidden = 42, heads = 3, nope = 12, rope = 8, v = 10, d = 24, q_rank = 20;
  const auto transposed = [&](const std::string& tensor) {
    return [s = stored(tensor)](std::int64_t i, std::int64_t j) { return s(j, i); };
  };
  const auto& layer = model.layers.at(1);
  const auto& a = layer.attention;
  CHECK(matches(a.latent->q_a, hidden, q_rank, transposed("self_attn.q_a_proj.weight")));
  CHECK(matches(a.q, q_rank, heads * (nope + rope), transposed("self_attn.q_b_proj.weight")));
  const auto kv_a = stored("self_attn.kv_a_proj_with_mqa.weight");
  CHECK(matches(a.latent->kv_a, hidden, d, [&](auto i, auto j) { return kv_a(j, i); }));
  CHECK(matches(a.k_rope.weight, hidden, rope, [&](auto i, auto j) { return kv_a(d + j, i); }));
  const auto kv_b = stored("self_attn.kv_b_proj.weight");
  CHECK(matches(a.k.weight, d, heads * nope,
                [&](auto i, auto j) { return kv_b(j / nope * (nope + v) + j % nope, i); }));
  CHECK(matches(a.v.weight, d, heads * v,
                [&](auto i, auto j) { return kv_b(j / v * (nope + v) + nope + j % v, i); }));
  CHECK(matches(a.o, heads * v, hidden, transposed("self_attn.o_proj.weight")));
  CHECK(same_bits(a.latent->kv_norm.at(5), stored("self_attn.kv_a_layernorm.weight")(5)));
  CHECK(same_bits(a.latent->q_norm.at(19), stored("self_attn.q_a_layernorm.weight")(19)));
  CHECK(a.latent->norm_epsilon == 1e-6);  // the latents' norms do not take rms_norm_eps
  CHECK(layer.attention_norm.epsilon == 1e-3);
  CHECK(layer.attention_norm.kind == NormKind::kRms);
  CHECK(same_bits(layer.attention_norm.weight.at(41), stored("input_layernorm.weight")(41)));
  CHECK(same_bits(layer.mlp_norm.weight.at(41), stored("post_attention_layernorm.weight")(41)));

  CHECK(std::holds_alternative<GatedMlp<T>>(model.layers.at(0).mlp));
  const auto& moe = std::get<MoeMlp<T>>(layer.mlp);
  CHECK(matches(moe.router, hidden, 6, transposed("mlp.gate.weight")));
  CHECK(moe.routing.experts_per_token == 2);
  CHECK(moe.routing.groups == 3);
  CHECK(moe.routing.groups_per_token == 2);
  CHECK(moe.routing.scale == 1.75);
  REQUIRE(moe.experts.size() == 6);
  CHECK(matches(moe.experts[4].gate.weight, hidden, 18,
                transposed("mlp.experts.4.gate_proj.weight")));
  CHECK(matches(moe.experts[4].up.weight, hidden, 18, transposed("mlp.experts.4.up_proj.weight")));
  CHECK(matches(moe.experts[4].down.weight, 18, hidden,
                transposed("mlp.experts.4.down_proj.weight")));
  REQUIRE(moe.shared);
  CHECK(
      matches(moe.shared->up.weight, hidden, 18, transposed("mlp.shared_experts.up_proj.weight")));
  CHECK(model.lm_head.empty());
  CHECK(&model.output_embedding() == &model.embedding);
  CHECK(model.vocab_size() == 96);
  CHECK(model.hidden_dim() == hidden);
  CHECK(model.max_positions == 256);
}

TEST_CASE("GPT-2's fused projection comes out split, bit for bit") {
  const Checkpoint checkpoint = open_checkpoint(fixture("gpt2"));
  const auto model = load_transformer<float>(checkpoint);
  constexpr std::int64_t hidden = 36, inner = 52;
  const auto stored = [&](const std::string& tensor) {
    return Stored<float>(checkpoint.tensors.at("transformer." + tensor));
  };
  const auto& layer = model.layers.at(1);
  const auto& a = layer.attention;
  const auto c_attn = stored("h.1.attn.c_attn.weight");
  const auto bias = stored("h.1.attn.c_attn.bias");
  const auto part = [&](std::int64_t offset) {
    return [&c_attn, offset](std::int64_t i, std::int64_t j) { return c_attn(i, offset + j); };
  };
  CHECK(matches(a.q, hidden, hidden, part(0)));
  CHECK(matches(a.k.weight, hidden, hidden, part(hidden)));
  CHECK(matches(a.v.weight, hidden, hidden, part(2 * hidden)));
  for (std::int64_t i = 0; i < hidden; ++i) {
    const auto at = static_cast<std::size_t>(i);
    CHECK((same_bits(a.q_bias[at], bias(i)) && same_bits(a.k.bias[at], bias(hidden + i)) &&
           same_bits(a.v.bias[at], bias(2 * hidden + i))));
  }
  CHECK(matches(a.o, hidden, hidden, stored("h.1.attn.c_proj.weight")));
  CHECK(same_bits(a.o_bias.at(35), stored("h.1.attn.c_proj.bias")(35)));
  CHECK(layer.attention_norm.kind == NormKind::kLayer);
  CHECK(same_bits(layer.attention_norm.bias.at(7), stored("h.1.ln_1.bias")(7)));
  CHECK(same_bits(layer.mlp_norm.weight.at(7), stored("h.1.ln_2.weight")(7)));
  const auto& mlp = std::get<PlainMlp<float>>(layer.mlp);
  CHECK(mlp.activation == Activation::kGeluTanh);
  CHECK(matches(mlp.up.weight, hidden, inner, stored("h.1.mlp.c_fc.weight")));
  CHECK(matches(mlp.down.weight, inner, hidden, stored("h.1.mlp.c_proj.weight")));
  CHECK(same_bits(mlp.up.bias.at(51), stored("h.1.mlp.c_fc.bias")(51)));
  CHECK(matches(model.embedding, 96, hidden, stored("wte.weight")));
  CHECK(matches(model.positions, 32, hidden, stored("wpe.weight")));
  CHECK(same_bits(model.final_norm.bias.at(0), stored("ln_f.bias")(0)));
}

TEST_CASE("Llama's tensors come out transposed, bit for bit") {
  using T = Eigen::bfloat16;
  const Checkpoint checkpoint = open_checkpoint(fixture("llama"));
  const auto model = load_transformer<T>(checkpoint);
  const auto transposed = [&](const std::string& tensor) {
    return [s = Stored<T>(checkpoint.tensors.at("model.layers.0." + tensor))](
               std::int64_t i, std::int64_t j) { return s(j, i); };
  };
  const auto& a = model.layers.at(0).attention;
  CHECK(matches(a.q, 48, 40, transposed("self_attn.q_proj.weight")));
  CHECK(matches(a.k_rope.weight, 48, 20, transposed("self_attn.k_proj.weight")));
  CHECK(matches(a.v.weight, 48, 20, transposed("self_attn.v_proj.weight")));
  CHECK(matches(a.o, 40, 48, transposed("self_attn.o_proj.weight")));
  CHECK(a.k.weight.empty());
  CHECK(a.k_rope.bias.size() == 20);
  CHECK(same_bits(a.q_bias.at(39), transposed("self_attn.q_proj.bias")(0, 39)));
  const auto& mlp = std::get<GatedMlp<T>>(model.layers.at(0).mlp);
  CHECK(matches(mlp.gate.weight, 48, 64, transposed("mlp.gate_proj.weight")));
  CHECK(matches(mlp.down.weight, 64, 48, transposed("mlp.down_proj.weight")));
  CHECK(mlp.gate.bias.empty());
  CHECK(matches(model.lm_head, 96, 48, Stored<T>(checkpoint.tensors.at("lm_head.weight"))));
  CHECK(&model.output_embedding() == &model.lm_head);
}

TEST_CASE("One layer alone is that layer of the whole model") {
  const std::string name =
      GENERATE(as<std::string>{}, "deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2", "llama");
  INFO(name);
  const Checkpoint checkpoint = open_checkpoint(fixture(name));
  const auto model = load_transformer<double>(fixture(name));
  const std::int64_t layers = attention_count(checkpoint.config);
  REQUIRE(static_cast<std::int64_t>(model.layers.size()) == layers);
  for (std::int64_t i = 0; i < layers; ++i) {
    const auto alone = load_attention_layer<double>(checkpoint, i);
    const auto& within = model.layers[static_cast<std::size_t>(i)].attention;
    CHECK_NOTHROW(bda::validate(alone));
    std::vector<std::vector<double>> tensors;
    alone.for_each_tensor([&](std::string_view, const double* values, std::int64_t count) {
      tensors.emplace_back(values, values + count);
    });
    std::size_t next = 0;
    within.for_each_tensor([&](std::string_view tensor, const double* values, std::int64_t count) {
      INFO(tensor);
      CHECK(tensors.at(next++) == std::vector<double>(values, values + count));
    });
  }
  CHECK_THAT(
      error_of([&] { (void)load_attention_layer<double>(checkpoint, layers); }),
      ContainsSubstring("attention: expected a value from 0 to " + std::to_string(layers - 1)));
  CHECK_THAT(error_of([&] { (void)load_attention_layer<double>(checkpoint, -1); }),
             ContainsSubstring("attention: ") && ContainsSubstring("got -1"));
}

/// Writes a fixture again with its tensors changed; its config too where one is given.
std::filesystem::path rewrite(const TemporaryFolder& folder, const Checkpoint& original,
                              const std::function<void(std::vector<Tensor>&)>& change,
                              const Json& config_changes = Json::object()) {
  std::vector<Tensor> tensors = bda_test::tensors_of(original.tensors);
  change(tensors);
  write_safetensors(folder.path() / TensorStore::kSingleFile, tensors);
  const auto path = original.tensors.folder() / "config.json";
  const MappedFile file(path);
  Json config = parse_json_object(
      {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path.string());
  config.update(config_changes);
  folder.write("config.json", config.dump());
  return folder.path();
}

Tensor& find(std::vector<Tensor>& tensors, const std::string& name) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
  REQUIRE(found != tensors.end());
  return *found;
}

TEST_CASE("The names of a model's body may lack their prefix") {
  const std::string name = GENERATE(as<std::string>{}, "deepseek_v2_q_lora", "gpt2", "llama");
  INFO(name);
  const Checkpoint original = open_checkpoint(fixture(name));
  const TemporaryFolder folder;
  const auto path = rewrite(folder, original, [](std::vector<Tensor>& tensors) {
    for (Tensor& t : tensors)
      for (const char* prefix : {"model.", "transformer."})
        if (t.name.starts_with(prefix)) t.name.erase(0, std::strlen(prefix));
  });
  const auto expected = load_transformer<float>(original);
  const auto model = load_transformer<float>(path);
  CHECK(model.embedding.values == expected.embedding.values);
  CHECK(model.layers.back().attention.o.values == expected.layers.back().attention.o.values);
  CHECK(model.lm_head.values == expected.lm_head.values);
}

TEST_CASE("A tied head may be stored too, where it is the embedding") {
  const Checkpoint original = open_checkpoint(fixture("gpt2"));
  const TemporaryFolder folder;
  std::vector<float> head = read_values<float>(original.tensors.at("transformer.wte.weight"));
  const auto add_head = [&](std::vector<Tensor>& tensors) {
    tensors.push_back(make_tensor<float>("lm_head.weight", {96, 36}, head));
  };
  CHECK(load_transformer<float>(rewrite(folder, original, add_head)).lm_head.empty());
  head[100] += 1;
  const auto path = rewrite(folder, original, add_head);
  CHECK_THAT(error_of([&] { (void)load_transformer<float>(path); }),
             ContainsSubstring("lm_head.weight: expected the values of transformer.wte.weight"));
  // Untied, the same file has a head of its own.
  const auto untied = rewrite(folder, original, add_head, {{"tie_word_embeddings", false}});
  CHECK(load_transformer<float>(untied).lm_head.values == head);
}

TEST_CASE("Stored causal masks and rotary frequencies are no weights") {
  const TemporaryFolder folder;
  const std::vector<float> values(4);
  const auto add = [&](const std::string& name) {
    return [&values, name](std::vector<Tensor>& tensors) {
      tensors.push_back(make_tensor<float>(name, {1, 1, 2, 2}, values));
    };
  };
  const Checkpoint gpt2 = open_checkpoint(fixture("gpt2"));
  const Checkpoint llama = open_checkpoint(fixture("llama"));
  CHECK_NOTHROW(load_transformer<float>(rewrite(folder, gpt2, add("transformer.h.0.attn.bias"))));
  CHECK_NOTHROW(load_transformer<float>(
      rewrite(folder, llama, add("model.layers.0.self_attn.rotary_emb.inv_freq"))));
  const auto path = rewrite(folder, llama, add("model.layers.0.self_attn.q_norm.weight"));
  CHECK_THAT(error_of([&] { (void)load_transformer<float>(path); }),
             ContainsSubstring("model.layers.0.self_attn.q_norm.weight: expected only tensors") &&
                 ContainsSubstring("shape [1, 1, 2, 2]"));
}

TEST_CASE("A tensor that is missing, misshapen or not finite is refused by name") {
  const Checkpoint original = open_checkpoint(fixture("llama"));
  const TemporaryFolder folder;
  const std::string name = "model.layers.1.self_attn.v_proj.weight";
  const auto load = [&](const std::function<void(std::vector<Tensor>&)>& change) {
    const auto path = rewrite(folder, original, change);
    return error_of([&] { (void)load_transformer<float>(path); });
  };
  CHECK_THAT(
      load([&](auto& tensors) { std::erase_if(tensors, [&](auto& t) { return t.name == name; }); }),
      ContainsSubstring("expected a tensor " + name));
  CHECK_THAT(load([](auto& tensors) {
               std::erase_if(tensors, [](auto& t) { return t.name == "lm_head.weight"; });
             }),
             ContainsSubstring("expected a tensor lm_head.weight"));
  CHECK_THAT(
      load([&](auto& tensors) {
        find(tensors, name).shape = {48, 20};
      }),
      ContainsSubstring(name + ".shape: expected [20, 48]") && ContainsSubstring("got [48, 20]"));
  CHECK_THAT(load([&](auto& tensors) { find(tensors, name).shape = {960}; }),
             ContainsSubstring(name + ".shape") && ContainsSubstring("got [960]"));

  std::vector<float> values = read_values<float>(original.tensors.at(name));
  values[77] = std::numeric_limits<float>::quiet_NaN();
  const auto replace = [&](auto& tensors) {
    find(tensors, name) = make_tensor<float>(name, {20, 48}, values);
  };
  CHECK_THAT(load(replace), ContainsSubstring(name + "[77]: expected a finite value, got nan"));
  values[77] = -std::numeric_limits<float>::infinity();
  CHECK_THAT(load(replace), ContainsSubstring(name + "[77]: expected a finite value, got -inf"));
  values[77] = 1e6f;
  const auto path = rewrite(folder, original, replace);
  CHECK_THAT(error_of([&] { (void)load_transformer<Eigen::half>(path); }),
             ContainsSubstring(name + "[77]: expected a magnitude that fp16 can hold"));
}

}  // namespace

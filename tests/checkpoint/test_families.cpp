#include <algorithm>
#include <bda/attention/bd_attention.hpp>
#include <bda/checkpoint.hpp>
#include <bda/cpu/backend.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "checkpoint/recorded_module.hpp"
#include "checkpoint/temporary_folder.hpp"
#include "preparation.hpp"

namespace {

using bda::AttentionConfig;
using bda::AttentionWeights;
using bda_test::error_of;
using bda_test::RecordedModule;
using Catch::Matchers::ContainsSubstring;

constexpr double kUnit = 0x1p-53;

/// The layer's output on the CPU, [tokens, out_dim].
std::vector<double> run(const AttentionWeights<double>& w, const RecordedModule& m) {
  const bda::BDAttention<bda::CpuBackend<double>> attention(w);
  const AttentionConfig& c = w.config;
  std::vector<double> out(static_cast<std::size_t>(m.tokens * c.out_dim),
                          std::numeric_limits<double>::quiet_NaN());
  bda::AttentionArguments<double> args;
  args.x = {m.x.data(), {1, m.tokens, w.hidden_dim()}};
  if (m.cross) args.context = {m.context.data(), {1, m.keys, w.context_dim()}};
  args.out = {out.data(), {1, m.tokens, c.out_dim}};
  args.mask = m.mask;
  std::vector<std::byte> workspace(attention.workspace_size(args));
  const bda::Status status = attention.run(args, workspace);
  INFO(status.message());
  REQUIRE(status.ok());
  return out;
}

double norm(std::span<const double> values) {
  double squares = 0;
  for (double v : values) squares += v * v;
  return std::sqrt(squares);
}

/// The largest norm of a row that the projections read: RMS-normed latents have a bound of their
/// own.
double largest_row(const std::vector<double>& rows, std::int64_t width,
                   const std::vector<double>& latent_gain) {
  double largest = 0;
  if (!latent_gain.empty()) {
    for (double g : latent_gain) largest = std::max(largest, std::abs(g));
    return largest * std::sqrt(static_cast<double>(latent_gain.size()));
  }
  for (std::size_t i = 0; i < rows.size(); i += static_cast<std::size_t>(width))
    largest = std::max(largest, norm({rows.data() + i, static_cast<std::size_t>(width)}));
  return largest;
}

/// The largest magnitude of x W + b in columns [first, first + width).
double projected(double x, const bda::Matrix<double>& w, const std::vector<double>& bias,
                 std::int64_t first, std::int64_t width) {
  double squares = 0;
  for (std::int64_t i = 0; i < w.rows; ++i)
    for (std::int64_t j = first; j < first + width; ++j) squares += w(i, j) * w(i, j);
  const double offset =
      bias.empty() ? 0 : norm({bias.data() + first, static_cast<std::size_t>(width)});
  return x * std::sqrt(squares) + offset;
}

/// A bound on what decomposing in double can change in an output. The product W of a head changes
/// by 16 r u cond, relatively, with cond <= alpha sqrt(r d) (see test_decompose_heads.cpp), which
/// also covers running its factors: d roundings of values up to alpha times too large. By |x W c|
/// <= |x| |W| |c| a logit moves by at most s, hence a probability by exp(2 s) - 1.
double preparation_bound(const AttentionWeights<double>& w, const RecordedModule& m,
                         const bda::PreparationReport& report) {
  const AttentionConfig& c = w.config;
  const auto change = [&](const auto& side, std::int64_t rank) {
    const auto r = static_cast<double>(rank), d = static_cast<double>(c.kv_dim);
    return side ? 16 * r * kUnit * side->max_alpha() * std::sqrt(r * d) : 0.0;
  };
  const double qk = change(report.qk, c.qk_dim), vo = change(report.vo, c.v_dim);
  const std::vector<double> none;
  const double x = largest_row(m.x, w.hidden_dim(), w.latent ? w.latent->q_norm : none);
  const double context =
      largest_row(m.cross ? m.context : m.x, w.context_dim(), w.latent ? w.latent->kv_norm : none);
  double bound = 0;
  for (std::int64_t h = 0; h < c.heads; ++h) {
    const std::int64_t g = h / c.group_size();
    const double query = projected(x, w.q, w.q_bias, h * c.head_dim(), c.qk_dim);
    const double key =
        c.qk_dim > 0 ? projected(context, w.k.weight, w.k.bias, g * c.qk_dim, c.qk_dim) : 0.0;
    const double value = projected(context, w.v.weight, w.v.bias, g * c.v_dim, c.v_dim);
    const double output =
        norm({w.o.data() + h * c.v_dim * c.out_dim, static_cast<std::size_t>(c.v_dim * c.out_dim)});
    bound += (std::expm1(2 * c.scale * query * key * qk) + vo) * value * output;
  }
  return bound;
}

/// Checks `out` against transformers: two implementations in double lie within the oracle's bound
/// of the exact value, hence within twice that of each other, and `more` is allowed besides.
void check_output(const std::vector<double>& out, const RecordedModule& m,
                  const bda::testing::Rows& bounded, double more) {
  REQUIRE(out.size() == m.output.size());
  const std::size_t width = bounded.front().size();
  double excess = -std::numeric_limits<double>::infinity(), largest_bound = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double bound = 2 * bounded[i / width][i % width].error + more;
    const double difference = std::abs(out[i] - m.output[i]);
    excess = std::isnan(difference) ? difference : std::max(excess, difference - bound);
    largest_bound = std::max(largest_bound, bound);
  }
  CHECK(excess <= 0);
  // A bound that could hide a wrong weight would prove nothing: that shows in the first digits.
  CHECK(largest_bound < 1e-5 * norm(m.output) / std::sqrt(static_cast<double>(out.size())));
}

/// Runs a module plain and with each side decomposed that can be; `refuses_qk` is part of the
/// reason why the QK side cannot, null where it can.
void check_module(const AttentionWeights<double>& weights, const RecordedModule& recorded,
                  const char* refuses_qk) {
  REQUIRE_NOTHROW(bda::validate(weights));
  const bda::testing::Rows bounded = recorded.bounded(weights);
  check_output(run(weights, recorded), recorded, bounded, 0);

  const auto check_sides = [&](bool qk, bool vo) {
    CAPTURE(qk, vo);
    bda::PreparationOptions options;
    options.sides = {.qk = qk, .vo = vo};
    const auto prepared = bda::prepare<double>(weights, options);
    CHECK(prepared.weights.k.decomposed() == qk);
    CHECK(prepared.weights.v.decomposed() == vo);
    check_output(run(prepared.weights, recorded), recorded, bounded,
                 preparation_bound(weights, recorded, prepared.report));
  };
  check_sides(false, true);
  if (refuses_qk == nullptr) {
    check_sides(true, false);
    check_sides(true, true);
  } else {
    CHECK_THAT(error_of([&] { (void)bda::prepare<double>(weights); }),
               ContainsSubstring("sides.qk") && ContainsSubstring(refuses_qk));
  }
}

constexpr const char* kRotary = "a rotary embedding turns all";

struct Family {
  const char* folder;
  std::int64_t modules;
  const char* last_name;   // of the last attention module
  const char* refuses_qk;  // see check_module
};

TEST_CASE("Every family's attention computes what transformers computes, plain and decomposed") {
  const Family family = GENERATE(values<Family>({
      {"bert", 2, "encoder.layer.1.attention", nullptr},
      {"roberta", 2, "encoder.layer.1.attention", nullptr},
      {"vit", 2, "encoder.layer.1.attention", nullptr},
      {"clip", 2, "vision_model.encoder.layers.0.self_attn", nullptr},
      {"clip_text", 1, "encoder.layers.0.self_attn", nullptr},
      {"whisper", 4, "decoder.layers.0.encoder_attn", nullptr},
      {"t5", 4, "decoder.block.0.layer.1.EncDecAttention", nullptr},
      {"opt", 2, "decoder.layers.1.self_attn", nullptr},
      {"gpt_neox", 2, "layers.1.attention", nullptr},
      {"phi", 2, "layers.1.self_attn", nullptr},
      {"mistral", 2, "layers.1.self_attn", kRotary},
      {"qwen2", 2, "layers.1.self_attn", kRotary},
      {"qwen3", 2, "layers.1.self_attn", kRotary},
      {"gemma", 2, "layers.1.self_attn", kRotary},
      {"gemma2", 2, "layers.1.self_attn", kRotary},
      {"gemma3", 2, "layers.1.self_attn", kRotary},
      {"deepseek_v3", 2, "layers.1.self_attn", nullptr},
      {"kimi_k2", 1, "layers.0.self_attn", nullptr},
  }));
  const auto folder = bda_test::fixture("attention") / family.folder;
  const auto checkpoint = bda::checkpoint::open_checkpoint(folder);
  const bda::checkpoint::SafetensorsFile reference(folder / "reference.safetensors");
  REQUIRE(attention_count(checkpoint.config) == family.modules);
  CHECK(attention_name(checkpoint.config, family.modules - 1) == family.last_name);
  for (std::int64_t i = 0; i < family.modules; ++i) {
    CAPTURE(family.folder, i);
    const RecordedModule recorded(reference, std::to_string(i) + ".",
                                  attention_pattern(checkpoint.config, i));
    check_module(bda::checkpoint::load_attention_layer<double>(checkpoint, i), recorded,
                 family.refuses_qk);
  }
}

TEST_CASE("The first layer's attention of whole language models computes what transformers does") {
  const Family family = GENERATE(values<Family>({
      {"deepseek_v2_yarn", 3, "layers.2.self_attn", nullptr},
      {"deepseek_v2_q_lora", 2, "layers.1.self_attn", nullptr},
      {"gpt2", 2, "h.1.attn", nullptr},
      {"llama", 2, "layers.1.self_attn", kRotary},
  }));
  const auto checkpoint = bda::checkpoint::open_checkpoint(bda_test::fixture(family.folder));
  REQUIRE(attention_count(checkpoint.config) == family.modules);
  CHECK(attention_name(checkpoint.config, family.modules - 1) == family.last_name);
  CAPTURE(family.folder);
  const bda::checkpoint::SafetensorsFile reference(bda_test::fixture(family.folder) /
                                                   "reference.safetensors");
  const RecordedModule recorded(reference, "layer0_attention_",
                                attention_pattern(checkpoint.config, 0));
  check_module(bda::checkpoint::load_attention_layer<double>(checkpoint, 0), recorded,
               family.refuses_qk);
}

TEST_CASE("fp8 weights need their scales, and only they may have some") {
  using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
  const Checkpoint original = open_checkpoint(bda_test::fixture("attention") / "kimi_k2");
  const bda_test::TemporaryFolder folder;
  const std::string name = "model.layers.0.self_attn.kv_b_proj.weight";
  const auto load = [&](const auto& change) {
    std::vector<Tensor> tensors = bda_test::tensors_of(original.tensors);
    change(tensors);
    write_safetensors(folder.path() / TensorStore::kSingleFile, tensors);
    const Checkpoint changed{original.config, TensorStore(folder.path())};
    return error_of([&] { (void)load_attention_layer<double>(changed, 0); });
  };
  const auto find = [](std::vector<Tensor>& tensors, const std::string& wanted) -> Tensor& {
    return *std::ranges::find(tensors, wanted, &Tensor::name);
  };
  CHECK(load([](auto&) {}).empty());
  CHECK_THAT(load([&](auto& tensors) {
               std::erase_if(tensors, [&](auto& t) { return t.name == name + "_scale_inv"; });
             }),
             ContainsSubstring("expected a tensor " + name + "_scale_inv"));
  const std::vector<float> wide(132 * 24, 0.5f);
  CHECK_THAT(load([&](auto& tensors) {
               find(tensors, name) = make_tensor<float>(name, {132, 24}, wide);
             }),
             ContainsSubstring(name + ".dtype: expected F8_E4M3 (as it has scales beside it)"));
  // Without scales a weight in such a checkpoint may be stored as any other.
  CHECK(load([&](auto& tensors) {
          std::erase_if(tensors, [&](auto& t) { return t.name == name + "_scale_inv"; });
          find(tensors, name) = make_tensor<float>(name, {132, 24}, wide);
        }).empty());
  std::vector<std::byte> nan(132 * 24, std::byte{0});
  nan[30] = std::byte{0xff};
  CHECK_THAT(load([&](auto& tensors) { find(tensors, name).bytes = nan; }),
             ContainsSubstring(name + "[30]: expected a finite value, got "));
}

TEST_CASE("A published CLIP tower alone has its tower's name before its tensors") {
  using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
  const Checkpoint original = open_checkpoint(bda_test::fixture("attention") / "clip_text");
  const bda_test::TemporaryFolder folder;
  std::vector<Tensor> tensors = bda_test::tensors_of(original.tensors);
  for (Tensor& t : tensors) t.name = "text_model." + t.name;
  write_safetensors(folder.path() / TensorStore::kSingleFile, tensors);
  const Checkpoint renamed{original.config, TensorStore(folder.path())};
  CHECK(load_attention_layer<double>(renamed, 0).o.values ==
        load_attention_layer<double>(original, 0).o.values);
}

TEST_CASE("Gemma 3's language model is found within a model that also sees") {
  using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
  const auto plain = bda_test::fixture("attention") / "gemma3";
  const Checkpoint original = open_checkpoint(plain);
  const MappedFile file(plain / "config.json");
  Json text = parse_json_object(
      {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, "config.json");
  const Json config{{"model_type", "gemma3"}, {"text_config", text}, {"vision_config", {{"a", 1}}}};
  // As published, and as the module is called within transformers.
  const std::string prefix = GENERATE("language_model.", "model.language_model.");
  const bda_test::TemporaryFolder folder;
  folder.write("config.json", config.dump());
  std::vector<Tensor> tensors = bda_test::tensors_of(original.tensors);
  for (Tensor& t : tensors)
    t.name = prefix + (prefix == "language_model." ? t.name : t.name.substr(6));  // "model."
  write_safetensors(folder.path() / TensorStore::kSingleFile, tensors);
  const Checkpoint within = open_checkpoint(folder.path());
  REQUIRE(attention_count(within.config) == 2);
  for (std::int64_t i = 0; i < 2; ++i) {
    CHECK(attention_name(within.config, i) == attention_name(original.config, i));
    CHECK(load_attention_layer<double>(within, i).v.weight.values ==
          load_attention_layer<double>(original, i).v.weight.values);
  }
}

TEST_CASE("Gains of one plus the stored weight are rounded to the type once") {
  const auto checkpoint =
      bda::checkpoint::open_checkpoint(bda_test::fixture("attention") / "gemma3");
  const auto wide = bda::checkpoint::load_attention_layer<double>(checkpoint, 1);
  // By its own adapter: that of every family in another type takes long to compile.
  const auto& config = std::get<bda::checkpoint::RotaryDecoderConfig>(checkpoint.config);
  auto weights = weight_reader<Eigen::bfloat16>(config, checkpoint.tensors);
  const auto narrow = read_attention(config, 1, weights);
  const auto stored = bda::checkpoint::read_values<double>(
      checkpoint.tensors.at("model.layers.1.self_attn.k_norm.weight"));
  for (std::size_t i = 0; i < stored.size(); ++i) {
    CHECK(wide.k_head_norm[i] == 1 + stored[i]);
    CHECK(std::abs(static_cast<double>(narrow.k_head_norm[i]) - wide.k_head_norm[i]) <=
          0x1p-8 * wide.k_head_norm[i]);
  }
}

}  // namespace

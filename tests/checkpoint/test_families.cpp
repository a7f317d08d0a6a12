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

struct Family {
  const char* folder;
  std::int64_t modules;
  const char* last_name;   // of the last attention module
  const char* refuses_qk;  // part of the reason, null where the QK side is exact
};

TEST_CASE("Every family's attention computes what transformers computes, plain and decomposed") {
  constexpr const char* kRotary = "a rotary embedding turns all";
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
    const auto weights = bda::checkpoint::load_attention_layer<double>(checkpoint, i);
    REQUIRE_NOTHROW(bda::validate(weights));
    const RecordedModule recorded(reference, std::to_string(i) + ".",
                                  attention_pattern(checkpoint.config, i));
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
    if (family.refuses_qk == nullptr) {
      check_sides(true, false);
      check_sides(true, true);
    } else {
      CHECK_THAT(error_of([&] { (void)bda::prepare<double>(weights); }),
                 ContainsSubstring("sides.qk") && ContainsSubstring(family.refuses_qk));
    }
  }
}

}  // namespace

#include <Eigen/SVD>
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "attention/oracle.hpp"
#include "attention/problem.hpp"
#include "attention/random_layer.hpp"
#include "bda/preparation/prepare.hpp"
#include "support/error_of.hpp"

using namespace bda;
using bda::testing::LayerTraits;
using bda::testing::Random;

namespace {

/// The largest difference between two layers' outputs on a random problem, and the largest output.
struct Difference {
  double absolute = 0, magnitude = 0;
};

template <class T, class U>
Difference outputs_differ(Random& random, const AttentionWeights<T>& a,
                          const AttentionWeights<U>& b, bool cross, bool all_rows_see_a_key) {
  testing::Problem<double> problem(random, a, cross);
  if (all_rows_see_a_key) {  // the folded bias form assumes that rows sum to one
    problem.mask.key_lengths = nullptr;
    problem.mask.causal = problem.mask.causal && !cross;
    if (cross) problem.mask.window = 0;
  }
  const auto expected = problem.expected(testing::Oracle<T>(a));
  const auto given = problem.expected(testing::Oracle<U>(b));
  Difference d;
  for (std::size_t i = 0; i < expected.size(); ++i)
    for (std::size_t t = 0; t < expected[i].size(); ++t)
      for (std::size_t j = 0; j < expected[i][t].size(); ++j) {
        d.absolute = std::max(d.absolute, std::abs(expected[i][t][j].value - given[i][t][j].value));
        d.magnitude = std::max(d.magnitude, std::abs(expected[i][t][j].value));
      }
  return d;
}

/// A bound on what decomposing in double changes in an output. The products W change by
/// 16 r eps cond relative (see test_decompose_heads), cond <= alpha sqrt(r d) for a head, weighted
/// by rows x, c of length sqrt(width) * 4 at the most; a logit's change s moves the softmax by
/// exp(2 s) - 1, the values' enter once. Everything here is of order one, so sizes are counted
/// generously: the bound must only stay far below what a wrong formula gives, which is 1e-2.
double double_bound(const AttentionConfig& c, double alpha) {
  const auto width = static_cast<double>(std::max({c.query_dim, c.kv_dim, c.out_dim}) + 24);
  return 0x1p-53 * 16 * width * alpha * std::sqrt(width * width) * 16 * width;
}

LayerTraits plain_traits(Random& random) {
  LayerTraits t = testing::random_traits(random);
  t.k_basis = t.v_basis = t.rope_basis = testing::BasisKind::kNone;
  t.head_norms = false;
  t.nope = true;
  return t;
}

AttentionWeights<double> layer(std::uint32_t seed, LayerTraits traits) {
  Random random(seed);
  return testing::random_layer<double>(random, traits);
}

template <class T = double, class U>
std::string refusal(const AttentionWeights<U>& w, const PreparationOptions& options = {}) {
  return bda_test::error_of([&] { return prepare<T>(w, options); }).what();
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("Prepared in double, every kind of layer gives the same output", "[prepare]") {
  const auto seed = GENERATE(Catch::Generators::range(1u, 121u));
  Random random(seed);
  const LayerTraits traits = plain_traits(random);
  const AttentionWeights<double> plain = testing::random_layer<double>(random, traits);
  PreparationOptions options;
  std::vector<const char*> strategies{"first_r", "last_r", "residual_min", "best_slice",
                                      "joint_pivot"};
  if (traits.latent) strategies.push_back("latent_rotation");
  const char* name = strategies[static_cast<std::size_t>(
      random.in(0, static_cast<std::int64_t>(strategies.size()) - 1))];
  options.basis = parse_basis_strategy(name);
  const std::int64_t sides = random.in(1, 3);
  options.sides = {(sides & 1) != 0, (sides & 2) != 0};
  options.threads = static_cast<int>(random.in(1, 2));
  if (!traits.sinks && !traits.softcap && random.coin()) options.bias_form = BiasForm::kFolded;
  const bool folded = options.bias_form == BiasForm::kFolded;
  INFO("seed " << seed << " " << name << " qk " << options.sides.qk << " vo " << options.sides.vo
               << " latent " << traits.latent << " cross " << traits.cross << " biases "
               << traits.biases << " folded " << folded << " sinks " << traits.sinks);

  const PreparedLayer<double> done = prepare<double>(plain, options);
  CHECK(done.report.qk.has_value() == options.sides.qk);
  CHECK(done.report.vo.has_value() == options.sides.vo);
  CHECK(done.report.basis == name);
  const double bound =
      double_bound(plain.config, 1 + done.report.max_alpha() * done.report.max_alpha());
  const Difference d = outputs_differ(random, plain, done.weights, traits.cross, folded);
  CHECK(d.absolute <= bound * (1 + d.magnitude));

  // Each decomposed side loses r rows of d; folded biases are not stored at all.
  const AttentionConfig& c = plain.config;
  std::int64_t saved = 0;
  if (options.sides.qk) saved += c.kv_heads * c.qk_dim * c.qk_dim;
  if (options.sides.vo) saved += c.kv_heads * c.v_dim * c.v_dim;
  if (folded && traits.biases && options.sides.qk) saved += c.kv_heads * c.qk_dim;
  if (folded && traits.biases && options.sides.vo) saved += c.kv_heads * c.v_dim;
  CHECK(done.report.bytes_before == plain.bytes());
  CHECK(done.report.bytes_after == done.weights.bytes());
  CHECK(done.report.bytes_before - done.report.bytes_after == saved * 8);
}

TEST_CASE("A side that is not asked for stays as it was", "[prepare]") {
  LayerTraits traits;
  traits.biases = true;
  traits.rope = true;
  const AttentionWeights<double> plain = layer(3, traits);
  PreparationOptions options;
  options.sides = {.qk = false, .vo = true};
  const auto vo = prepare<double>(plain, options).weights;
  CHECK(vo.q.values == plain.q.values);
  CHECK(vo.q_bias == plain.q_bias);
  CHECK(vo.k.weight.values == plain.k.weight.values);
  CHECK(vo.k.bias == plain.k.bias);
  CHECK_FALSE(vo.k.decomposed());
  CHECK(vo.v.decomposed());
  options.sides = {.qk = true, .vo = false};
  const auto qk = prepare<double>(plain, options).weights;
  CHECK(qk.v.weight.values == plain.v.weight.values);
  CHECK(qk.o.values == plain.o.values);
  CHECK(qk.k.decomposed());
  CHECK(qk.k_rope.weight.values == plain.k_rope.weight.values);
}

TEST_CASE("The default basis turns a latent and leaves other channels in place", "[prepare]") {
  LayerTraits traits;
  CHECK(prepare<double>(layer(4, traits)).report.basis == "joint_pivot");
  traits.latent = true;
  const auto turned = prepare<double>(layer(4, traits));
  CHECK(turned.report.basis == "latent_rotation");
  for (double gain : turned.weights.latent->kv_norm) CHECK(gain == 1);
}

TEST_CASE("In a latent scattered basis channels become slices", "[prepare]") {
  LayerTraits traits;
  traits.latent = true;
  PreparationOptions options;
  options.basis = JointPivot{};
  for (std::uint32_t seed = 1; seed < 9; ++seed) {
    const auto w = prepare<double>(layer(seed, traits), options).weights;
    CHECK(w.k.basis->is_slice());
    CHECK(w.v.basis->is_slice());
    CHECK((w.k.basis->offset() == 0 || w.v.basis->offset() == 0));
  }
}

TEST_CASE("Folded biases are not added at run time", "[prepare][biases]") {
  LayerTraits traits;
  traits.biases = true;
  const AttentionWeights<double> plain = layer(5, traits);
  PreparationOptions options;
  options.bias_form = BiasForm::kFolded;
  const auto w = prepare<double>(plain, options).weights;
  CHECK(w.k.bias.empty());
  CHECK(w.v.bias.empty());
  CHECK(w.o_bias != plain.o_bias);
  options.bias_form = BiasForm::kGeneral;
  const auto general = prepare<double>(plain, options).weights;
  CHECK(general.k.bias.size() == plain.k.bias.size());
  CHECK(general.o_bias == plain.o_bias);
}

TEST_CASE("Rank-deficient heads are prepared exactly", "[prepare][rank]") {
  Random random(6);
  LayerTraits traits;
  traits.biases = GENERATE(false, true);
  traits.latent = GENERATE(false, true);
  AttentionWeights<double> plain = testing::random_layer<double>(random, traits);
  while (plain.config.kv_heads < 2 || plain.config.qk_dim < 3 || plain.config.v_dim < 3 ||
         plain.config.kv_dim < std::max(plain.config.qk_dim, plain.config.v_dim) + 3)
    plain = testing::random_layer<double>(random, traits);
  const AttentionConfig& c = plain.config;
  // Head 0's keys are zero; in head 1 two key channels and two value channels are the same.
  auto k = linalg::map(plain.k.weight), v = linalg::map(plain.v.weight);
  k.leftCols(c.qk_dim).setZero();
  k.col(c.qk_dim + 1) = k.col(c.qk_dim);
  v.col(c.v_dim + 2) = v.col(c.v_dim);
  for (const char* name : {"best_slice", "joint_pivot", "latent_rotation"}) {
    if (std::string_view(name) == "latent_rotation" && !traits.latent) continue;
    INFO(name << " biases " << traits.biases);
    PreparationOptions options;
    options.basis = parse_basis_strategy(name);
    if (std::string_view(name) == "best_slice") options.basis = BestSlice{.multiple = 1};
    const auto done = prepare<double>(plain, options);
    CHECK(done.report.qk->heads[0].rank == 0);
    CHECK(done.report.qk->heads[1].rank == c.qk_dim - 1);
    CHECK(done.report.vo->heads[1].rank == c.v_dim - 1);
    const Difference d = outputs_differ(random, plain, done.weights, false, true);
    CHECK(d.absolute <=
          double_bound(c, 1 + std::pow(done.report.max_alpha(), 2)) * (1 + d.magnitude));
  }
  if (traits.biases) {
    // A key bias along a missing direction shifts all logits of a query alike: dropped where that
    // changes nothing, refused where it would.
    plain.sinks.assign(static_cast<std::size_t>(c.heads), 0.5);
    const std::string message = refusal(plain);
    CHECK(contains(message, "k.bias of head 0"));
    CHECK(contains(message, "0 independent channels"));
  }
}

TEST_CASE("What is not exact is refused, and says what is", "[prepare][exactness]") {
  LayerTraits rotary;
  rotary.nope = false;
  rotary.rope = true;
  const AttentionWeights<double> llama = layer(7, rotary);
  SECTION("rotary embedding on every channel") {
    const std::string message = refusal(llama);
    CHECK(contains(message, "sides.qk"));
    CHECK(contains(message, "rotary embedding"));
    CHECK(contains(message, std::to_string(llama.config.rope_dim) + " channels"));
    CHECK(contains(message, "decompose the VO side alone"));
    PreparationOptions vo;
    vo.sides.qk = false;
    CHECK_NOTHROW(prepare<double>(llama, vo));
  }
  SECTION("forced, it runs and is wrong") {
    PreparationOptions forced;
    forced.allow_inexact = true;
    const auto done = prepare<double>(llama, forced);
    CHECK(done.weights.k_rope.decomposed());
    Random random(70);
    Difference worst;
    for (int i = 0; i < 8; ++i) {
      const Difference d = outputs_differ(random, llama, done.weights, false, true);
      if (d.absolute > worst.absolute) worst = d;
    }
    CHECK(worst.absolute > 1e-3 * worst.magnitude);
  }
  SECTION("a rotated key beside a latent, which it does not read, even when forced") {
    LayerTraits traits = rotary;
    traits.latent = true;
    PreparationOptions forced;
    forced.allow_inexact = true;
    const std::string message = refusal(layer(7, traits), forced);
    CHECK(contains(message, "sides.qk: expected a key that is computed from the latent"));
    CHECK(contains(message, "hidden state"));
  }
  SECTION("norms after the projections") {
    LayerTraits traits;
    traits.head_norms = true;
    const AttentionWeights<double> normed = layer(8, traits);
    const std::string message = refusal(normed);
    CHECK(contains(message, "sides.qk"));
    CHECK(contains(message, "norm"));
    PreparationOptions vo;
    vo.sides.qk = false;
    CHECK_NOTHROW(prepare<double>(normed, vo));
  }
  SECTION("a rotation without a latent") {
    PreparationOptions options;
    options.basis = LatentRotation{};
    const std::string message = refusal(layer(9, {}), options);
    CHECK(contains(message, "basis"));
    CHECK(contains(message, "latent_rotation"));
  }
  SECTION("folded biases under sinks or capped logits") {
    PreparationOptions options;
    options.bias_form = BiasForm::kFolded;
    LayerTraits traits;
    traits.biases = true;
    traits.sinks = true;
    CHECK(contains(refusal(layer(10, traits), options), "sinks"));
    traits.sinks = false;
    traits.softcap = true;
    CHECK(contains(refusal(layer(10, traits), options), "capped"));
  }
  SECTION("weights that are decomposed already") {
    const auto once = prepare<double>(layer(11, {})).weights;
    CHECK(contains(refusal(once), "already decomposed"));
  }
}

TEST_CASE("Bad weights are refused by tensor and value", "[prepare]") {
  AttentionWeights<float> w;
  {
    Random random(12);
    LayerTraits traits;
    traits.latent = true;
    w = testing::random_layer<float>(random, traits);
  }
  SECTION("not finite") {
    w.v.weight.values[3] = std::numeric_limits<float>::infinity();
    CHECK(refusal<float>(w) == "v.weight[3]: expected a finite value, got inf");
  }
  SECTION("not finite in the latent") {
    w.latent->kv_a.values[5] = std::numeric_limits<float>::quiet_NaN();
    CHECK(contains(refusal<float>(w), "latent.kv_a[5]: expected a finite value, got"));
  }
  SECTION("of the wrong shape") {
    const std::int64_t rows = w.k.weight.rows;
    w.k.weight = Matrix<float>(rows + 1, w.k.weight.cols);
    CHECK(refusal<float>(w) ==
          "k.weight.rows: expected " + std::to_string(rows) + ", got " + std::to_string(rows + 1));
  }
  SECTION("too large for fp16") {
    w.o.values[2] = 1e9f;
    const std::string message = refusal<Eigen::half>(w);
    CHECK(contains(message, "65504"));
    CHECK(contains(message, "fp16"));
    CHECK_NOTHROW(prepare<Eigen::bfloat16>(w));
  }
  SECTION("heads wider than the inputs to choose from") {
    LayerTraits traits;
    auto wide = layer(13, traits);
    wide.config.v_dim = wide.config.kv_dim + 1;
    wide.v.weight = Matrix<double>(wide.config.kv_dim, wide.config.kv_heads * wide.config.v_dim);
    wide.o = Matrix<double>(wide.config.heads * wide.config.v_dim, wide.config.out_dim);
    CHECK(contains(refusal(wide), "sides.vo"));
  }
}

TEST_CASE("16-bit storage stays within its rounding", "[prepare]") {
  Random random(14);
  const auto seed = GENERATE(Catch::Generators::range(1u, 6u));
  LayerTraits traits;
  traits.latent = true;
  traits.rope = traits.shared_rope = true;
  const AttentionWeights<float> plain = [&] {
    Random r(seed);
    return testing::random_layer<float>(r, traits);
  }();
  for (const Rounding rounding : {Rounding::kAware, Rounding::kPlain}) {
    PreparationOptions options;
    options.rounding = rounding;
    const auto done = prepare<Eigen::bfloat16>(plain, options);
    for (const auto& side : {done.report.qk, done.report.vo})
      for (const HeadReport& head : side->heads)
        // Each entry of B and C is off by at most u = 2^-8: at the worst 2 u alpha sqrt(r).
        CHECK(head.residual <= 2 * 0x1p-8 * 1.01 * head.alpha *
                                   std::sqrt(static_cast<double>(
                                       std::max(plain.config.qk_dim, plain.config.v_dim))));
  }
}

TEST_CASE("Preparation does not depend on the number of threads", "[prepare]") {
  LayerTraits traits;
  traits.latent = true;
  const AttentionWeights<double> plain = layer(15, traits);
  PreparationOptions one, two;
  two.threads = 2;
  const auto a = prepare<float>(plain, one).weights, b = prepare<float>(plain, two).weights;
  CHECK(a.q.values == b.q.values);
  CHECK(a.k.weight.values == b.k.weight.values);
  CHECK(a.v.weight.values == b.v.weight.values);
  CHECK(a.o.values == b.o.values);
  CHECK(a.latent->kv_a.values == b.latent->kv_a.values);
}

TEST_CASE("A layer in another storage type is each value to nearest", "[convert]") {
  Random random(16);
  LayerTraits traits;
  traits.latent = traits.q_lora = traits.biases = traits.rope = true;
  const auto plain = testing::random_layer<double>(random, traits);
  const auto half = convert<Eigen::half>(plain);
  CHECK_NOTHROW(validate(half));
  for (std::size_t i = 0; i < plain.q.values.size(); ++i)
    CHECK(half.q.values[i] == static_cast<Eigen::half>(static_cast<float>(plain.q.values[i])));
  CHECK(half.bytes() * 4 == plain.bytes());
  const auto same = convert<double>(plain);
  CHECK(same.latent->kv_a.values == plain.latent->kv_a.values);
}

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>

#include "checkpoint/temporary_folder.hpp"
#include "conversion.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::fixture;
using Catch::Matchers::ContainsSubstring;

template <class T>
struct Pair {
  bda::AttentionWeights<bda_project::Source<T>> original, stored;

  explicit Pair(const std::string& name, bda::PreparationOptions options = {}) {
    original = load_attention_layer<bda_project::Source<T>>(open_checkpoint(fixture(name)), 0);
    options.sides.qk = options.sides.qk && !bda::why_qk_is_inexact(original);
    stored = bda::convert<bda_project::Source<T>>(bda::prepare<T>(original, options).weights);
  }
  [[nodiscard]] AttentionVerification verify() const {
    return verify_attention(original, stored, bda::StorageTraits<T>::dtype);
  }
};

TEMPLATE_TEST_CASE("Every strategy's result is within what rounding explains", "", double, float,
                   Eigen::half, Eigen::bfloat16) {
  for (const char* name : {"deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2", "llama"})
    for (const char* basis : {"first_r", "residual_min", "joint_pivot", "latent_rotation"}) {
      bda::PreparationOptions options;
      options.basis = bda::parse_basis_strategy(basis);
      const bool has_latent = std::string(name).starts_with("deepseek");
      if (!has_latent && std::string(basis) == "latent_rotation") continue;
      INFO(name << " " << basis);
      const AttentionVerification found = Pair<TestType>(name, options).verify();
      for (const SideVerification& side : {found.qk, found.vo}) {
        CAPTURE(side.error, side.expected);
        CHECK_NOTHROW(check_verified("side", side));
        CHECK(side.error >= 0);
      }
      CHECK(found.vo.error > 0);  // it was rounded
    }
}

TEST_CASE("What rounding does not explain is found in every part of a module") {
  using T = Eigen::half;
  const auto refused = [](const Pair<T>& pair) {
    const AttentionVerification found = pair.verify();
    return error_of([&] {
      check_verified("qk", found.qk);
      check_verified("vo", found.vo);
    });
  };
  for (const char* name : {"deepseek_v2_q_lora", "gpt2"}) {
    const Pair<T> good(name);
    CHECK(refused(good).empty());
    // One column of each weight in turn, off by a tenth: of the last head, where there are heads.
    std::size_t count = 0;
    for_each_member(good.stored, [&](const char*, const auto&) { ++count; });
    for (std::size_t broken = 0; broken < count; ++broken) {
      Pair<T> pair = good;
      std::string what;
      std::size_t i = 0;
      for_each_member(pair.stored, [&](const char* member_name, auto& member) {
        if (i++ != broken || member.empty()) return;
        const std::string text = member_name;
        if (text == "o_bias" || text == "k.bias") return;  // constants that cancel, see below
        what = text;
        if constexpr (requires { member.rows; }) {
          for (std::int64_t row = 0; row < member.rows; ++row) member(row, member.cols - 1) *= 1.1f;
        } else {
          for (auto& value : member) value *= 1.1f;
        }
      });
      if (what.empty() || what == "v.bias") continue;  // v.bias reaches each token alike
      INFO(name << " " << what);
      CHECK_THAT(refused(pair), ContainsSubstring("a relative error of at most"));
    }
  }
}

TEST_CASE("A channel that is not the basis' own is found") {
  Pair<Eigen::half> pair("gpt2");
  std::vector<std::int64_t> indices = pair.stored.v.basis->indices();
  const std::vector<std::int64_t> rest = pair.stored.v.basis->rest();
  indices.back() = rest.front();
  pair.stored.v.basis = bda::IndexSet(pair.stored.config.kv_dim, indices);
  CHECK_THAT(error_of([&] { check_verified("vo", pair.verify().vo); }),
             ContainsSubstring("vo: expected a relative error of at most"));
}

TEST_CASE("NaN verifies nothing") {
  Pair<Eigen::half> pair("gpt2");
  pair.stored.o(0, 0) = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(error_of([&] { check_verified("vo", pair.verify().vo); }).empty());
}

}  // namespace

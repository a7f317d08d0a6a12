#include <bda/checkpoint/load.hpp>
#include <bda/checkpoint/safetensors_writer.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/temporary_folder.hpp"
#include "preparation.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::fixture;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

template <class T>
void check_same_bits(const bda::AttentionWeights<T>& a, const bda::AttentionWeights<T>& b) {
  std::vector<std::vector<T>> tensors;
  a.for_each_tensor([&](std::string_view, const T* values, std::int64_t count) {
    tensors.emplace_back(values, values + count);
  });
  std::size_t next = 0;
  b.for_each_tensor([&](std::string_view name, const T* values, std::int64_t count) {
    INFO(name);
    const std::vector<T>& expected = tensors.at(next++);
    REQUIRE(expected.size() == static_cast<std::size_t>(count));
    CHECK(std::memcmp(expected.data(), values, sizeof(T) * expected.size()) == 0);
  });
  CHECK(next == tensors.size());
  CHECK(a.k.basis == b.k.basis);
  CHECK(a.v.basis == b.v.basis);
  CHECK(a.sinks == b.sinks);
  CHECK(a.latent.has_value() == b.latent.has_value());
  if (a.latent) CHECK(a.latent->norm_epsilon == b.latent->norm_epsilon);
  CHECK(a.head_norm_epsilon == b.head_norm_epsilon);
}

/// A fixture's first module, decomposed and written as tensors alone.
template <class T>
struct Written {
  TemporaryFolder folder;
  bda::AttentionWeights<T> weights;
  BdAttention form;
  bda::AttentionConfig config;

  explicit Written(
      const std::string& name, const bda::PreparationOptions& options = {},
      const std::function<void(std::vector<Tensor>&)>& change = [](auto&) {}) {
    const Checkpoint checkpoint = open_checkpoint(fixture(name));
    config = attention_config(checkpoint.config, 0);
    auto prepared =
        bda::prepare<T>(load_attention_layer<bda_project::Source<T>>(checkpoint, 0), options);
    weights = std::move(prepared.weights);
    weights.sinks.assign(static_cast<std::size_t>(config.heads), 0.1);
    form = bd_attention(weights, "layers.0", prepared.report.basis, prepared.report.latent);
    std::vector<Tensor> tensors = bd_tensors(weights, "model.layers.0");
    change(tensors);
    write_safetensors(folder.path() / TensorStore::kSingleFile, tensors);
  }

  bda::AttentionWeights<T> read(const BdAttention& from) const {
    const TensorStore store(folder.path());
    WeightReader<T> reader(store, {"model."}, "layers.0.bda.q");
    return read_bd_attention(config, from, reader);
  }
};

TEMPLATE_TEST_CASE("A decomposed module reads back bit for bit", "", float, Eigen::bfloat16) {
  for (const char* name : {"deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2"})
    for (const char* basis : {"residual_min", "joint_pivot"}) {
      INFO(name << " " << basis);
      bda::PreparationOptions options;
      options.basis = bda::parse_basis_strategy(basis);
      const Written<TestType> written(name, options);
      check_same_bits(written.weights, written.read(written.form));
      CHECK(written.form.latent == (std::string(basis) == "joint_pivot" && written.weights.latent
                                        ? bda::LatentChange::kPermuted
                                        : bda::LatentChange::kNone));
    }
  const Written<TestType> rotated("deepseek_v2_q_lora");
  check_same_bits(rotated.weights, rotated.read(rotated.form));
  CHECK(rotated.form.latent == bda::LatentChange::kRotated);

  bda::PreparationOptions values_only;
  values_only.sides.qk = false;
  const Written<TestType> llama("llama", values_only);
  check_same_bits(llama.weights, llama.read(llama.form));
  CHECK_FALSE(llama.form.qk);
}

TEST_CASE("A module's tensors that do not fit its section or config are refused") {
  const Written<float> good("gpt2");
  BdAttention form = good.form;
  form.tensors.emplace_back("w");
  CHECK_THAT(error_of([&] { (void)good.read(form); }),
             ContainsSubstring("expected tensors of an attention module, got w"));
  form = good.form;
  form.tensors.emplace_back("q");  // twice is as good as once
  CHECK_NOTHROW(good.read(form));
  form = good.form;
  form.tensors.emplace_back("q_head_norm");
  CHECK_THAT(error_of([&] { (void)good.read(form); }),
             ContainsSubstring("a tensor model.layers.0.bda.q_head_norm"));
  form = good.form;
  std::erase(form.tensors, "k.weight");
  CHECK_THAT(error_of([&] { (void)good.read(form); }), ContainsSubstring("layers.0.bda.k.weight"));
  form = good.form;
  form.qk = std::nullopt;  // then k.weight has too few rows
  CHECK_THAT(error_of([&] { (void)good.read(form); }),
             ContainsSubstring("layers.0.bda.k.weight.rows"));
  form = good.form;
  form.qk = bda::IndexSet::slice(good.config.kv_dim + 1, 0, good.config.qk_dim);
  CHECK_THAT(error_of([&] { (void)good.read(form); }),
             ContainsSubstring("layers.0.bda.k.basis.dim"));
  form = good.form;
  form.sinks.pop_back();
  CHECK_THAT(error_of([&] { (void)good.read(form); }), ContainsSubstring("sinks.size"));
  form = good.form;
  form.tensors.emplace_back("latent.kv_a");  // of a module without a latent
  CHECK_THAT(error_of([&] { (void)good.read(form); }), ContainsSubstring("got latent.kv_a"));

  const Written<float> flat("gpt2", {}, [](std::vector<Tensor>& tensors) {
    tensors.front().shape = {tensors.front().size()};
  });
  CHECK_THAT(error_of([&] { (void)flat.read(flat.form); }),
             ContainsSubstring("model.layers.0.bda.q.shape: expected two extents"));
}

}  // namespace

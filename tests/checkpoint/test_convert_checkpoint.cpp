#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/temporary_folder.hpp"
#include "conversion.hpp"

namespace {

namespace fs = std::filesystem;
using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::fixture;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Every file's content by its relative path.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      files[entry.path().lexically_relative(folder)] = content(entry.path());
  return files;
}

template <class T>
bool same_bits(const bda::AttentionWeights<T>& a, const bda::AttentionWeights<T>& b) {
  const auto bytes = [](const bda::AttentionWeights<T>& w) {
    std::string all;
    w.for_each_tensor([&](std::string_view name, const T* values, std::int64_t count) {
      all.append(name).append(std::to_string(count));
      all.append(reinterpret_cast<const char*>(values),
                 static_cast<std::size_t>(count) * sizeof(T));
    });
    return all;
  };
  return bytes(a) == bytes(b) && a.k.basis == b.k.basis && a.v.basis == b.v.basis &&
         a.sinks == b.sinks;
}

/// What conversion in memory gives for a module.
template <class T>
bda::AttentionWeights<T> in_memory(const Checkpoint& original, std::int64_t i,
                                   const ConversionOptions& options) {
  const auto plain = load_attention_layer<bda_project::Source<T>>(original, i);
  bda::PreparationOptions o;
  o.basis = options.basis;
  o.rounding = options.rounding;
  o.sides = options.sides.value_or(
      bda::Sides{.qk = !bda::why_qk_is_inexact(plain), .vo = !bda::why_vo_is_inexact(plain)});
  return bda::prepare<T>(plain, o).weights;
}

template <class T>
void check_converted(const fs::path& input, const fs::path& output,
                     const ConversionOptions& options) {
  const Checkpoint original = open_checkpoint(input, options.map);
  const Checkpoint converted = open_checkpoint(output);
  std::set<std::string> of_attention;
  for (std::int64_t i = 0; i < attention_count(original.config); ++i) {
    INFO("module " << i);
    CHECK(same_bits(load_attention_layer<T>(converted, i), in_memory<T>(original, i, options)));
    for (const auto& [name, tensor] : original.tensors.tensors())
      if (name.find(attention_name(original.config, i) + ".") != std::string::npos)
        of_attention.insert(name);
  }
  // The rest of the tensors, byte for byte; what stands beside the weights in a module (a norm of
  // its output, a mask) too, but not the weights.
  std::size_t replaced = 0;
  for (const auto& [name, tensor] : original.tensors.tensors()) {
    const Tensor* copy = converted.tensors.find(name);
    if (of_attention.contains(name) && copy == nullptr) {
      ++replaced;
      continue;
    }
    REQUIRE(copy != nullptr);
    CHECK(copy->type == tensor->type);
    CHECK(copy->shape == tensor->shape);
    CHECK(std::ranges::equal(copy->bytes, tensor->bytes));
  }
  CHECK(replaced >= 4 * static_cast<std::size_t>(attention_count(original.config)) / 2);
  for (const auto& [name, tensor] : converted.tensors.tensors())
    CHECK((original.tensors.find(name) != nullptr || name.find(kBdInfix) != std::string::npos));
}

void check_converted(const fs::path& input, const fs::path& output, const ConversionReport& report,
                     const ConversionOptions& options) {
  const auto dtype = *report.attention.front().dtype;
  CHECK(dtype != bda::DType::kF64);
  if (dtype == bda::DType::kF32) check_converted<float>(input, output, options);
  if (dtype == bda::DType::kF16) check_converted<Eigen::half>(input, output, options);
  if (dtype == bda::DType::kBF16) check_converted<Eigen::bfloat16>(input, output, options);
  std::int64_t bytes = 0;
  const TensorStore original(input);
  for (const auto& [name, tensor] : original.tensors())
    bytes += static_cast<std::int64_t>(tensor->bytes.size());
  CHECK(report.bytes_before() + report.bytes_copied == bytes);
}

TEST_CASE("Every family's attention converts, verified, with each module's exact sides") {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(fixture("attention")))
    names.push_back(entry.path().filename());
  REQUIRE(names.size() >= 18);
  for (const std::string& name : names) {
    INFO(name);
    const TemporaryFolder folder;
    const fs::path input = fixture("attention") / name;
    ConversionOptions options;
    options.verify = true;
    const ConversionReport report = convert_checkpoint(input, folder.path() / "out", options);
    check_converted(input, folder.path() / "out", report, options);
    for (const AttentionConversion& module : report.attention) {
      CHECK(module.preparation.qk.has_value() == module.why_not_qk.empty());
      CHECK(module.preparation.vo.has_value() == module.why_not_vo.empty());
      CHECK(module.preparation.vo.has_value());
    }
  }
}

TEST_CASE("A described model converts, and its description goes with it") {
  const TemporaryFolder folder;
  ConversionOptions options;
  options.map = folder.write("map.json", R"({"attention": [{
      "name": "transformer.h.{}.attn", "layers": 2, "heads": 3, "head_dim": 12, "query_dim": 36,
      "scale": 0.28867513459481287, "qkv": "c_attn", "qkv_order": "projections", "o": "c_proj",
      "stored": "in_out", "biases": ["q", "k", "v", "o"]}]})");
  options.verify = true;
  const ConversionReport report =
      convert_checkpoint(fixture("gpt2"), folder.path() / "mapped", options);
  check_converted(fixture("gpt2"), folder.path() / "mapped", report, options);
  // The same weights as by the known family.
  convert_checkpoint(fixture("gpt2"), folder.path() / "known");
  CHECK(same_bits(load_attention_layer<float>(open_checkpoint(folder.path() / "mapped"), 1),
                  load_attention_layer<float>(open_checkpoint(folder.path() / "known"), 1)));
  CHECK_THAT(error_of([&] { (void)open_checkpoint(folder.path() / "mapped", options.map); }),
             ContainsSubstring("no such section beside a map"));
}

TEST_CASE("A converted checkpoint reads as what conversion in memory gives, all else unchanged") {
  const std::string name =
      GENERATE(as<std::string>{}, "deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2", "llama");
  const std::string basis = GENERATE(as<std::string>{}, "", "residual_min", "joint_pivot");
  INFO(name << " " << basis);
  const TemporaryFolder folder;
  const fs::path output = folder.path() / "out";
  ConversionOptions options;
  if (!basis.empty()) options.basis = bda::parse_basis_strategy(basis);
  options.verify = true;
  options.threads = 2;
  const ConversionReport report = convert_checkpoint(fixture(name), output, options);

  check_converted(fixture(name), output, report, options);
  // The whole model loads, in any type.
  CHECK_NOTHROW(load_transformer<double>(output));

  // config.json is the original's text with a section behind it; other files are the same.
  const auto before = contents(fixture(name)), after = contents(output);
  const std::string& text = before.at("config.json");
  const std::string kept = text.substr(0, text.find_last_not_of(" \n", text.rfind('}') - 1) + 1);
  CHECK(after.at("config.json").starts_with(kept + ",\n  \"bda\": {"));
  CHECK(after.at("reference.safetensors") == before.at("reference.safetensors"));
  CHECK(report.files_copied == 1);
  CHECK(after.size() == 3);  // with model.safetensors

  std::int64_t bytes = report.bytes_copied;
  const TensorStore written(output);
  for (const auto& [tensor_name, tensor] : written.tensors())
    bytes -= static_cast<std::int64_t>(tensor->bytes.size());
  CHECK(bytes == -report.bytes_after());
  CHECK(report.bytes_after() < report.bytes_before());
  for (const AttentionConversion& module : report.attention) {
    CHECK(module.preparation.vo);
    CHECK(module.preparation.qk.has_value() == (name != "llama"));
    CHECK(module.why_not_qk.empty() == (name != "llama"));
    CHECK(module.verified_vo->error > 0);
  }
  const Json json = json_of(report);
  CHECK(json["attention"].size() == report.attention.size());
  CHECK(json["attention"][0]["vo"]["verified"]["error"] == report.attention[0].verified_vo->error);
}

TEST_CASE(
    "The option dtype stores the attention in another type, from the values as they were stored") {
  const auto dtype = GENERATE(bda::DType::kF32, bda::DType::kF16, bda::DType::kBF16);
  const TemporaryFolder folder;
  ConversionOptions options;
  options.dtype = dtype;
  options.verify = true;
  convert_checkpoint(fixture("gpt2"), folder.path(), options);
  if (dtype == bda::DType::kF32) check_converted<float>(fixture("gpt2"), folder.path(), options);
  if (dtype == bda::DType::kF16)
    check_converted<Eigen::half>(fixture("gpt2"), folder.path(), options);
  if (dtype == bda::DType::kBF16)
    check_converted<Eigen::bfloat16>(fixture("gpt2"), folder.path(), options);
}

/// A fixture as one file of F64.
void write_double(const TemporaryFolder& folder, const std::string& name) {
  const Checkpoint checkpoint = open_checkpoint(fixture(name));
  std::vector<std::vector<double>> values;
  std::vector<Tensor> tensors;
  for (const auto& [tensor_name, tensor] : checkpoint.tensors.tensors())
    values.push_back(read_values<double>(*tensor));
  std::size_t i = 0;
  for (const auto& [tensor_name, tensor] : checkpoint.tensors.tensors())
    tensors.push_back(make_tensor<double>(tensor_name, tensor->shape, values[i++]));
  write_safetensors(folder.path() / TensorStore::kSingleFile, tensors);
  folder.write("config.json", content(fixture(name) / "config.json"));
}

TEST_CASE("Double stays double, and is narrowed where that is asked for") {
  const TemporaryFolder input, kept, narrowed;
  write_double(input, "gpt2");
  ConversionOptions options;
  options.verify = true;
  CHECK(convert_checkpoint(input.path(), kept.path(), options).attention[0].dtype ==
        bda::DType::kF64);
  check_converted<double>(input.path(), kept.path(), options);
  options.dtype = bda::DType::kBF16;
  CHECK(convert_checkpoint(input.path(), narrowed.path(), options).attention[0].dtype ==
        bda::DType::kBF16);
  check_converted<Eigen::bfloat16>(input.path(), narrowed.path(), options);
}

TEST_CASE("Shards are bounded, and the folder is the same for any number of threads") {
  const TemporaryFolder folder;
  ConversionOptions options;
  options.shard_bytes = 20000;
  const ConversionReport report =
      convert_checkpoint(fixture("deepseek_v2_q_lora"), folder.path() / "one", options);
  CHECK(report.shards > 3);
  check_converted<Eigen::half>(fixture("deepseek_v2_q_lora"), folder.path() / "one", options);
  options.threads = 2;
  convert_checkpoint(fixture("deepseek_v2_q_lora"), folder.path() / "two", options);
  CHECK(contents(folder.path() / "one") == contents(folder.path() / "two"));
}

TEST_CASE("Files and folders beside the tensors are copied; what leads out is refused") {
  const TemporaryFolder input, output;
  for (const auto& entry : fs::directory_iterator(fixture("gpt2")))
    fs::copy_file(entry.path(), input.path() / entry.path().filename());
  fs::create_directories(input.path() / "sub/deep");
  fs::create_directories(input.path() / ".git");
  input.write("sub/deep/code.py", "print()\n");
  input.write("tokenizer.json", std::string(1 << 20, 'x') + "\0y");
  input.write("empty", "");
  input.write(".git/HEAD", "x");
  fs::create_symlink("tokenizer.json", input.path() / "link.json");
  convert_checkpoint(input.path(), output.path());
  const auto before = contents(input.path()), after = contents(output.path());
  for (const char* name : {"sub/deep/code.py", "tokenizer.json", "empty"})
    CHECK(after.at(name) == before.at(name));
  CHECK(after.at("link.json") == before.at("tokenizer.json"));
  CHECK_FALSE(fs::is_symlink(output.path() / "link.json"));
  CHECK_FALSE(after.contains(".git/HEAD"));

  const TemporaryFolder again, elsewhere;
  elsewhere.write("secret", "x");
  const auto refused = [&] {
    return error_of([&] { convert_checkpoint(input.path(), again.path()); });
  };
  fs::create_symlink(elsewhere.path() / "secret", input.path() / "sub/notes");
  CHECK_THAT(refused(), ContainsSubstring("sub/notes") && ContainsSubstring("a link to"));
  fs::remove(input.path() / "sub/notes");
  fs::create_directory_symlink(elsewhere.path(), input.path() / "other");
  CHECK_THAT(refused(), ContainsSubstring("other") && ContainsSubstring("a link to"));
  fs::remove(input.path() / "other");
  input.write("model-00001-of-00002.safetensors", "x");
  CHECK_THAT(refused(), ContainsSubstring("model-00001-of-00002.safetensors"));
  fs::remove(input.path() / "model-00001-of-00002.safetensors");
  CHECK(fs::is_empty(again.path()));  // all of that before anything was written
  CHECK(refused().empty());
}

TEST_CASE("What cannot be converted leaves no checkpoint, and names module and value") {
  const TemporaryFolder folder, input;
  const fs::path output = folder.path() / "out";
  const auto refused = [&](const fs::path& from, const ConversionOptions& options) {
    const std::string message = error_of([&] { convert_checkpoint(from, output, options); });
    CHECK_FALSE(fs::exists(output / "config.json"));
    return message;
  };
  ConversionOptions both;
  both.sides = bda::Sides{};
  CHECK_THAT(refused(fixture("llama"), both),
             ContainsSubstring("layers.0.self_attn, sides.qk") &&
                 ContainsSubstring("a rotary embedding turns all"));
  ConversionOptions rotation;
  rotation.basis = bda::LatentRotation{};
  CHECK_THAT(refused(fixture("gpt2"), rotation), ContainsSubstring("h.0.attn, basis"));
  ConversionOptions none;
  none.sides = bda::Sides{.qk = false, .vo = false};
  CHECK_THAT(refused(fixture("gpt2"), none), ContainsSubstring("options.sides"));
  CHECK_THAT(refused(folder.path() / "missing", {}), ContainsSubstring("missing/config.json"));

  // A weight that is not finite is found when its module is read.
  const Checkpoint gpt2 = open_checkpoint(fixture("gpt2"));
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<Tensor> tensors = bda_test::tensors_of(gpt2.tensors);
    std::vector<float> values =
        read_values<float>(gpt2.tensors.at("transformer.h.1.attn.c_attn.weight"));
    values[77] = bad;
    for (Tensor& tensor : tensors)
      if (tensor.name == "transformer.h.1.attn.c_attn.weight")
        tensor = make_tensor<float>(tensor.name, tensor.shape, values);
    write_safetensors(input.path() / TensorStore::kSingleFile, tensors);
    input.write("config.json", content(fixture("gpt2") / "config.json"));
    CHECK_THAT(refused(input.path(), {}),
               ContainsSubstring("h.1.attn, ") &&
                   ContainsSubstring("c_attn.weight[77]: expected a finite value"));
  }

  // What they left is taken over by a conversion that can be done.
  CHECK_NOTHROW(convert_checkpoint(fixture("gpt2"), output));
  CHECK_NOTHROW(open_checkpoint(output));
}

TEST_CASE("A converted checkpoint is not converted again, nor read where its section lies") {
  const TemporaryFolder folder;
  const fs::path output = folder.path() / "out";
  convert_checkpoint(fixture("gpt2"), output);
  CHECK_THAT(error_of([&] { convert_checkpoint(output, folder.path() / "again"); }),
             ContainsSubstring("a checkpoint that is not converted yet"));
  CHECK_FALSE(fs::exists(folder.path() / "again"));

  const std::string config = content(output / "config.json");
  const auto with = [&](const char* pointer, const Json& value) {
    Json changed = Json::parse(config);
    changed[Json::json_pointer(pointer)] = value;
    std::ofstream(output / "config.json") << changed.dump();
    return error_of([&] { (void)load_transformer<float>(output); });
  };
  CHECK(with("/use_cache", true).empty());
  CHECK_THAT(with("/bda/attention/1/name", "h.7.attn"),
             ContainsSubstring("attention[1].name: expected h.1.attn, got h.7.attn"));
  CHECK_THAT(with("/bda/attention", Json::array({nullptr})),
             ContainsSubstring("attention.size: expected 2"));
  // The section says which tensors there are: without it, the attention's are missing.
  CHECK_THAT(with("/bda/attention/1", nullptr), ContainsSubstring("a tensor transformer.h.1.attn"));
}

TEST_CASE(
    "Killed at any step of its work, a conversion leaves nothing that loads; the next succeeds") {
  const TemporaryFolder folder;
  const std::string name = "deepseek_v2_q_lora";
  ConversionOptions options;
  options.shard_bytes = 20000;
  convert_checkpoint(fixture(name), folder.path() / "whole", options);
  const auto whole = contents(folder.path() / "whole");

  const fs::path output = folder.path() / "out";
  int steps = 0;
  for (bool finished = false; !finished; ++steps) {
    INFO("step " << steps);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      int left = steps;
      options.progress = [&](const ConversionProgress&) {
        if (left-- == 0) raise(SIGKILL);
      };
      try {
        convert_checkpoint(fixture(name), output, options);
      } catch (...) {
        _exit(1);
      }
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    finished = WIFEXITED(status);
    if (finished) {
      CHECK(WEXITSTATUS(status) == 0);  // over what all the killed ones left
      CHECK(contents(output) == whole);
    } else {
      CHECK_THAT(error_of([&] { (void)open_checkpoint(output); }),
                 ContainsSubstring("config.json"));
    }
  }
  CHECK(steps > 10);
  // A finished one is replaced just so.
  convert_checkpoint(fixture(name), output, options);
  CHECK(contents(output) == whole);
}

}  // namespace

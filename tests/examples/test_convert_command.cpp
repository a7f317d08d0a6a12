// The conversion program as a user calls it: exit status, messages, and that what it writes runs.
#include <sys/wait.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Outcome {
  int status = -1;
  std::string out, err;
};

/// Runs a program with arguments that need no quoting beyond their own.
Outcome run(const std::string& program, const std::string& arguments) {
  const bda_test::TemporaryFolder folder;
  const std::string out = folder.path() / "out", err = folder.path() / "err";
  const std::string command = "'" + program + "' " + arguments + " >" + out + " 2>" + err;
  const int status = std::system(command.c_str());
  REQUIRE(WIFEXITED(status));
  return {WEXITSTATUS(status), read(out), read(err)};
}
Outcome convert(const std::string& arguments) { return run(BDA_CONVERT, arguments); }

std::string quoted(const fs::path& path) { return "'" + path.string() + "'"; }

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("bda_convert, bad arguments: status 2, the argument named, the usage shown") {
  struct Case {
    std::string arguments, message;
  };
  const Case c = GENERATE(
      Case{"", "arguments: expected IN_DIR and OUT_DIR, got 0"}, Case{"a", "got 1 of them"},
      Case{"a b c", "got 3 of them"}, Case{"a b --colour", "got --colour"},
      Case{"a b --basis", "--basis: expected a value, got none"},
      Case{"a b --basis best", "latent_rotation, got best"},
      Case{"a b --sides kq", "--sides: expected qk, vo or qk,vo, got kq"},
      Case{"a b --dtype fp64", "--dtype: expected keep, fp16, bf16 or fp32, got fp64"},
      Case{"a b --rounding up", "--rounding: expected aware or plain, got up"},
      Case{"a b --threads 0", "--threads: expected an integer from 1"},
      Case{"a b --shard-size x", "--shard-size: expected an integer"},
      Case{"--plan", "a CONFIG.json behind --plan"});
  INFO(c.arguments);
  const Outcome outcome = convert(c.arguments);
  CHECK(outcome.status == 2);
  CHECK(contains(outcome.err, c.message));
  CHECK(contains(outcome.err, "usage: bda_convert"));
  CHECK(outcome.out.empty());
}

TEST_CASE("bda_convert --help: status 0 and the usage on standard output") {
  const Outcome outcome = convert("--help");
  CHECK(outcome.status == 0);
  CHECK(contains(outcome.out, "usage: bda_convert"));
}

TEST_CASE("bda_convert, what cannot be read: status 1, the error, and no control characters") {
  const bda_test::TemporaryFolder input, output;
  CHECK(contains(convert("/nonexistent " + quoted(output.path())).err, "/nonexistent/config.json"));
  input.write("config.json", "{\"model_type\":\"gpt2\",\"a\\u001b[31m\":1}");
  const Outcome outcome = convert(quoted(input.path()) + " " + quoted(output.path()));
  CHECK(outcome.status == 1);
  CHECK(outcome.err.find('\x1b') == std::string::npos);
  CHECK(fs::is_empty(output.path()));
}

TEST_CASE("A converted folder runs to the same figures as converting in memory, bit for bit") {
  const std::string name =
      GENERATE(as<std::string>{}, "deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2", "llama");
  INFO(name);
  const bda_test::TemporaryFolder folder;
  const fs::path model = bda_test::fixture(name), output = folder.path() / name;
  const fs::path json = folder.path() / "runs.json", report = folder.path() / "report.json";
  const Outcome converted =
      convert(quoted(model) + " " + quoted(output) + " --verify --report " + quoted(report));
  INFO(converted.err);
  REQUIRE(converted.status == 0);
  CHECK(converted.err.empty());  // no progress bar where nobody watches
  CHECK(contains(converted.out, "copied"));
  const nlohmann::json config = nlohmann::json::parse(read(model / "config.json"));
  CHECK(nlohmann::json::parse(read(report))["attention"].size() ==
        config[config.contains("n_layer") ? "n_layer" : "num_hidden_layers"]);

  const std::string rest =
      " " + quoted(model / "reference.safetensors") + " --json " + quoted(json);
  REQUIRE(run(BDA_PERPLEXITY, quoted(model) + rest).status == 0);
  REQUIRE(run(BDA_PERPLEXITY, quoted(output) + rest + " --original " + quoted(model)).status == 0);
  const nlohmann::json runs = nlohmann::json::parse(read(json));
  REQUIRE(runs.size() == 2);
  CHECK(runs[0]["perplexity_bd"].dump() == runs[1]["perplexity_bd"].dump());
  for (const char* key : {"perplexity_original", "basis", "sides", "dtype", "bytes_original",
                          "bytes_bd", "attention_bytes_bd"})
    CHECK(runs[0][key] == runs[1][key]);
}

TEST_CASE("A converted folder alone has no original, and is not decomposed again") {
  const bda_test::TemporaryFolder folder;
  const fs::path model = bda_test::fixture("gpt2"), output = folder.path() / "out";
  const std::string evaluation = " " + quoted(model / "reference.safetensors");
  REQUIRE(convert(quoted(model) + " " + quoted(output)).status == 0);
  const Outcome alone = run(BDA_PERPLEXITY, quoted(output) + evaluation);
  CHECK(alone.status == 0);
  CHECK(contains(alone.out, "as converted"));
  CHECK_FALSE(contains(alone.out, "original"));
  CHECK_FALSE(contains(alone.out, "change"));
  CHECK(contains(run(BDA_PERPLEXITY, quoted(output) + evaluation + " --basis first_r").err,
                 "a checkpoint that is not converted"));
  CHECK(contains(
      run(BDA_PERPLEXITY, quoted(output) + evaluation + " --original " + quoted(output)).err,
      "--original: expected a checkpoint that is not converted"));
  CHECK(
      contains(run(BDA_PERPLEXITY, quoted(model) + evaluation + " --original " + quoted(model)).err,
               "--original: expected a converted MODEL_DIR"));
}

TEST_CASE("The README's matrix is what --plan prints") {
  std::string files;
  for (const char* name :
       {"deepseek_v2_lite", "deepseek_v3", "whisper_large_v3", "bert_base", "gpt2", "llama3_8b"})
    files += " " + quoted(bda_test::fixture("configs") / (std::string(name) + ".json"));
  const Outcome outcome = convert("--plan" + files);
  INFO(outcome.err);
  CHECK(outcome.status == 0);
  const std::string readme =
      read(fs::path(BDA_TEST_DATA_DIR).parent_path().parent_path() / "README.md");
  CHECK(contains(readme, outcome.out));
  CHECK(contains(outcome.out, "| deepseek_v2_lite | 27 | exact | exact |"));
  CHECK(contains(outcome.out, "| llama3_8b | 32 | not exact | exact |"));
}

}  // namespace

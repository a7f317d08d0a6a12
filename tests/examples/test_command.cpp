// The perplexity program as a user calls it: exit status, messages, JSON.
#include <sys/wait.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/temporary_folder.hpp"

namespace {

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Outcome {
  int status = -1;
  std::string out, err;
};

/// Runs the program with arguments that need no quoting.
Outcome run(const std::string& arguments) {
  const bda_test::TemporaryFolder folder;
  const std::string out = folder.path() / "out", err = folder.path() / "err";
  const std::string command = "'" BDA_PERPLEXITY "' " + arguments + " >" + out + " 2>" + err;
  const int status = std::system(command.c_str());
  REQUIRE(WIFEXITED(status));
  return {WEXITSTATUS(status), read(out), read(err)};
}

/// MODEL_DIR and the fixture's own evaluation file.
std::string fixture_arguments(const std::string& name) {
  const std::string folder = bda_test::fixture(name);
  return "'" + folder + "' '" + folder + "/reference.safetensors'";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("Bad arguments: status 2, the argument named, the usage shown") {
  struct Case {
    std::string arguments, message;
  };
  const Case c =
      GENERATE(Case{"", "arguments: expected MODEL_DIR and EVAL.safetensors, got neither"},
               Case{"a", "got MODEL_DIR alone"}, Case{"a b c", "got c too"},
               Case{"a b --colour", "expected an option of the usage, got --colour"},
               Case{"a b --basis", "--basis: expected a value, got none"},
               Case{"a b --basis best", "latent_rotation, got best"},
               Case{"a b --sides kq", "--sides: expected qk, vo or qk,vo, got kq"},
               Case{"a b --dtype fp8", "expected fp64, fp32, fp16 or bf16, got fp8"},
               Case{"a b --rounding up", "--rounding: expected aware or plain, got up"},
               Case{"a b --windows 0", "--windows: expected an integer from 1 to"},
               Case{"a b --threads 2x", "got \"2x\""});
  INFO(c.arguments);
  const Outcome outcome = run(c.arguments);
  CHECK(outcome.status == 2);
  CHECK(contains(outcome.err, c.message));
  CHECK(contains(outcome.err, "usage: bda_perplexity"));
  CHECK(outcome.out.empty());
}

TEST_CASE("The option --help: status 0 and the usage on standard output") {
  const Outcome outcome = run("--help");
  CHECK(outcome.status == 0);
  CHECK(contains(outcome.out, "usage: bda_perplexity"));
}

TEST_CASE("What cannot be read or decomposed: status 1 and the library's error") {
  const Outcome missing = run("/nonexistent/model /nonexistent/eval.safetensors");
  CHECK(missing.status == 1);
  CHECK(contains(missing.err, "/nonexistent/model/config.json"));

  const Outcome rotated = run(fixture_arguments("llama") + " --sides qk");
  CHECK(rotated.status == 1);
  CHECK(contains(rotated.err, "layer 0, sides.qk"));
  CHECK(contains(rotated.err, "rotary embedding"));
}

TEST_CASE("Attention in another type than the model is for the GPU, and says so") {
  const Outcome outcome = run(fixture_arguments("gpt2") + " --dtype bf16 --attention-dtype fp16");
  CHECK(outcome.status == 1);
  CHECK(contains(outcome.err, "--attention-dtype"));
  CHECK(contains(outcome.err, "fp16 with --dtype bf16 --device cpu"));
  CHECK(run(fixture_arguments("gpt2") + " --dtype bf16 --attention-dtype bf16").status == 0);
}

TEST_CASE("BDA in double is the original, for every fixture and all sides that are exact") {
  const std::string name =
      GENERATE(as<std::string>{}, "deepseek_v2_yarn", "deepseek_v2_q_lora", "gpt2", "llama");
  INFO(name);
  const bda_test::TemporaryFolder folder;
  const std::string json = folder.path() / "run.json";
  const Outcome outcome = run(fixture_arguments(name) + " --dtype fp64 --json '" + json + "'");
  REQUIRE(outcome.status == 0);
  const nlohmann::json result = nlohmann::json::parse(read(json))[0];
  CHECK(result["sides"] == (name == "llama" ? "vo" : "qk,vo"));
  CHECK(result["bytes_bd"] < result["bytes_original"]);
  // Roundings of 1.1e-16, some 4000 in a row, enlarged by norms, softmax and alpha: less than 1e-9
  // of the perplexity, 1e-7 percent. A wrong projection moves these random models by percents.
  CHECK(std::abs(result["relative_change_percent"].get<double>()) < 1e-7);
  CHECK(result["max_token_loss_error"].get<double>() < 1e-9);
}

TEST_CASE("The original is checked against the file's losses in fp64") {
  const Outcome agrees = run(fixture_arguments("llama") + " --dtype fp64");
  CHECK(agrees.status == 0);
  CHECK(contains(agrees.out, ": agrees"));
  CHECK(contains(agrees.out, "sides vo"));
  CHECK(agrees.err.empty());  // no progress bar where nobody watches

  const std::string model = bda_test::fixture("gpt2");
  const std::string others = bda_test::fixture("llama") / "reference.safetensors";
  const Outcome disagrees = run("'" + model + "' '" + others + "' --dtype fp64");
  CHECK(disagrees.status == 1);
  CHECK(contains(disagrees.out, "DOES NOT AGREE"));
  CHECK(run("'" + model + "' '" + others + "' --dtype fp32").status == 0);  // not asserted there
}

TEST_CASE("A forced side is labelled as inexact") {
  const Outcome forced =
      run(fixture_arguments("llama") + " --sides qk,vo --dtype fp64 --force-inexact");
  CHECK(forced.status == 0);
  CHECK(contains(forced.out, "INEXACT"));
}

TEST_CASE("JSON: an object a run, an equal run replaced, the same for any number of threads") {
  const bda_test::TemporaryFolder folder;
  const std::string json = folder.path() / "runs.json";
  const std::string common = fixture_arguments("gpt2") + " --json '" + json + "' --dtype ";
  REQUIRE(run(common + "fp64 --threads 1").status == 0);
  const nlohmann::json first = nlohmann::json::parse(read(json));
  REQUIRE(first.size() == 1);
  REQUIRE(run(common + "fp64 --threads 2").status == 0);
  CHECK(nlohmann::json::parse(read(json)) == first);

  REQUIRE(run(common + "bf16 --windows 1 --basis first_r --sides vo").status == 0);
  const nlohmann::json runs = nlohmann::json::parse(read(json));
  REQUIRE(runs.size() == 2);
  CHECK(runs[0] == first[0]);
  for (const char* key : {"model", "dtype", "basis", "sides", "windows", "perplexity_original",
                          "perplexity_bd", "relative_change_percent", "max_token_loss_error",
                          "alpha_max", "bytes_original", "bytes_bd"})
    for (const nlohmann::json& object : runs) CHECK(object.contains(key));
  CHECK(runs[0]["model"] == "gpt2");
  CHECK(runs[0]["sides"] == "qk,vo");
  CHECK(runs[1]["dtype"] == "bf16");
  CHECK(runs[1]["basis"] == "first_r");
  CHECK(runs[1]["sides"] == "vo");
  CHECK(runs[1]["windows"] == 1);
  CHECK(runs[1]["layers"][0]["qk"].is_null());
  CHECK(runs[0]["bytes_original"] == 4 * runs[1]["bytes_original"].get<std::int64_t>());
  CHECK(runs[0]["bytes_bd"] < runs[0]["bytes_original"]);
}

TEST_CASE("JSON: a file that holds something else is left alone") {
  const bda_test::TemporaryFolder folder;
  const std::string content = GENERATE("precious", "{\"a\": 1}", "[1]");
  const auto file = folder.write("notes.txt", content);
  const Outcome outcome = run(fixture_arguments("gpt2") + " --json '" + file.string() + "'");
  CHECK(outcome.status == 1);
  CHECK(contains(outcome.err, "a JSON array of runs"));
  CHECK(read(file) == content);
}

}  // namespace

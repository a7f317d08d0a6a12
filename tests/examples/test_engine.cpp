// The inference engine of examples/engine: its text, its tokenizer, and the program as a user calls
// it.
#include <sys/wait.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdio>
#include <string>

#include "../../examples/engine/cpu.hpp"
#include "../../examples/engine/tokenizer.hpp"
#include "../../examples/perplexity/evaluation_set.hpp"
#include "../../examples/perplexity/language_model.hpp"
#include "bda/checkpoint/load.hpp"
#include "bda/preparation/prepare.hpp"
#include "checkpoint/temporary_folder.hpp"

namespace {

namespace checkpoint = bda::checkpoint;
using Tokens = std::vector<std::int64_t>;

const std::filesystem::path kNano = BDA_NANO;

template <class T>
std::vector<bda::AttentionWeights<T>> attention_of(const checkpoint::TransformerWeights<T>& model) {
  std::vector<bda::AttentionWeights<T>> attention;
  for (const auto& layer : model.layers) attention.push_back(layer.attention);
  return attention;
}

/// Decomposed from the file's values, then stored in T.
template <class T>
std::vector<bda::AttentionWeights<T>> decomposed() {
  std::vector<bda::AttentionWeights<T>> attention;
  for (const auto& layer : checkpoint::load_transformer<double>(kNano).layers)
    attention.push_back(bda::prepare<T>(layer.attention).weights);
  return attention;
}

/// Whole sequences again for every token, by the library's own attention.
template <class T>
Tokens without_cache(const checkpoint::TransformerWeights<T>& model, Tokens tokens,
                     std::int64_t count) {
  const perplexity::LanguageModel<T> reference(model, attention_of(model));
  const std::size_t prompt = tokens.size();
  for (std::int64_t i = 0; i < count; ++i) {
    const auto hidden = reference.forward(tokens, static_cast<std::int64_t>(tokens.size()));
    Eigen::Index row = 0, word = 0;
    reference.logits(hidden.bottomRows(1)).maxCoeff(&row, &word);
    tokens.push_back(word);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt), tokens.end()};
}

TEST_CASE("200 tokens: the same from plain weights, decomposed ones and whole sequences") {
  const auto model = checkpoint::load_transformer<double>(kNano);
  const engine::Tokenizer tokenizer(kNano / "tokenizer.json");
  const Tokens prompt = tokenizer.encode("Once upon a time there was a king who");
  const auto generate = [&](auto attention) {
    engine::Engine<engine::Cpu<double>> engine(model, std::move(attention), 220);
    return engine.generate(prompt, 200);
  };
  const Tokens plain = generate(attention_of(model));
  CHECK(plain.size() == 200);
  CHECK(plain == generate(decomposed<double>()));
  CHECK(Tokens(plain.begin(), plain.begin() + 40) == without_cache(model, prompt, 40));
}

// In these types the text is the same too, by margin and not by necessity: two words whose logits
// differ by less than a rounding could be taken for one another. With bfloat16 that does happen.
TEMPLATE_TEST_CASE("200 tokens in float and half: the same text from plain and decomposed weights",
                   "", float, Eigen::half) {
  const auto model = checkpoint::load_transformer<TestType>(kNano);
  const auto bd = decomposed<TestType>();
  const engine::Tokenizer tokenizer(kNano / "tokenizer.json");
  for (const char* text :
       {"The President of the United States", "It was the best of times",
        "She looked at him and said,", "Once upon a time there was a king who"}) {
    CAPTURE(text);
    const auto generate = [&](auto attention) {
      engine::Engine<engine::Cpu<TestType>> engine(model, std::move(attention), 220);
      return tokenizer.decode(engine.generate(tokenizer.encode(text), 200));
    };
    CHECK(generate(attention_of(model)) == generate(bd));
  }
}

TEST_CASE("the engine refuses what its attention does not do") {
  auto model = checkpoint::load_transformer<float>(kNano);
  auto attention = attention_of(model);
  attention[2].config.logit_softcap = 30;
  engine::Engine<engine::Cpu<float>> engine(model, attention, 20);
  CHECK(bda_test::error_of([&] {
          engine.generate(Tokens{5, 6}, 3);
        }) == "attention: expected success, got mask: expected causal alone = 1, got 0");
}

// The numbers are those of the package `tokenizers`, for the same file.
TEST_CASE("tokens are those of the published tokenizer") {
  const engine::Tokenizer tokenizer(kNano / "tokenizer.json");
  CHECK(tokenizer.encode("In the beginning God created the heaven") ==
        Tokens{846, 262, 2951, 1227, 1560, 262, 2135, 271});
  CHECK(tokenizer.encode("  It's  they'll\n\n  1984, (really?) 'tis\tx ") ==
        Tokens{221, 629, 445, 221, 563, 2165, 199, 199, 221, 1098, 24, 20,
               12,  319, 263, 437, 31,  9,    843, 84,  269, 198,  88, 221});
  CHECK(tokenizer.encode("caf\u00e9 na\u00efve") ==
        Tokens{67, 2637, 128, 103, 298, 65, 128, 108, 313});
  CHECK(tokenizer.encode(" ") == Tokens{221});
  CHECK(tokenizer.encode("a\n b") == Tokens{65, 199, 276});
  CHECK(tokenizer.encode(" 's") == Tokens{843, 83});
  CHECK(tokenizer.encode("joy,<|endoftext|>For") == Tokens{74, 1183, 12, 0, 1518});
  CHECK(tokenizer.encode("").empty());
}

TEST_CASE("the shipped evaluation text survives decoding and encoding") {
  const engine::Tokenizer tokenizer(kNano / "tokenizer.json");
  const auto set =
      perplexity::read_evaluation_set(kNano / "eval_public_domain.safetensors", {}, 4096, 512);
  for (std::int64_t w = 0; w < set.tokens.rows; ++w) {
    CAPTURE(w);
    const std::int64_t* const row = set.tokens.data() + w * set.tokens.cols;
    const Tokens window(row, row + set.tokens.cols);
    const std::string text = tokenizer.decode(window);
    const Tokens again = tokenizer.encode(text);
    CHECK(tokenizer.decode(again) == text);
    // A window begins and ends within a word, which may be split differently there.
    const Tokens inner(window.begin() + 8, window.end() - 8);
    CHECK(std::search(again.begin(), again.end(), inner.begin(), inner.end()) != again.end());
  }
}

TEST_CASE("a file that is no byte-level BPE is refused by name") {
  const bda_test::TemporaryFolder folder;
  const auto message = [&](const std::filesystem::path& file) {
    return bda_test::error_of([&] { engine::Tokenizer{file}; });
  };
  CHECK(message("/nonexistent/tokenizer.json").find("/nonexistent/tokenizer.json") == 0);
  CHECK(message(folder.write("a.json", "{}")).find("a tokenizer.json") != std::string::npos);
  CHECK(message(folder.write("b.json",
                             R"({"model": {"type": "Unigram"}, "normalizer": null,
                                 "pre_tokenizer": {"type": "ByteLevel"}})"))
            .find("byte-level BPE") != std::string::npos);
}

struct Outcome {
  int status = -1;
  std::string text;  // both streams
};

Outcome run(const std::string& arguments) {
  Outcome outcome;
  FILE* const pipe = popen(("'" BDA_ENGINE "' " + arguments + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  for (int c = fgetc(pipe); c != EOF; c = fgetc(pipe)) outcome.text += static_cast<char>(c);
  const int status = pclose(pipe);
  REQUIRE(WIFEXITED(status));
  outcome.status = WEXITSTATUS(status);
  return outcome;
}

TEST_CASE("the program: text on standard output, errors that name the argument") {
  const std::string model = "'" BDA_NANO "' ";
  const Outcome plain = run(model + "'The whale' --weights plain --tokens 30");
  CHECK(plain.status == 0);
  CHECK(plain.text.starts_with("The whale"));
  CHECK(plain.text.size() > 60);
  CHECK(run(model + "'The whale' --tokens 30").text == plain.text);
  struct Case {
    std::string arguments, message;
  };
  for (const Case& c :
       {Case{"", "MODEL_DIR and PROMPT"}, Case{"a b --dtype fp8", "fp32, fp16, bf16"},
        Case{"a b --weights", "plain, bd, got nothing"},
        Case{"a b --tokens 0", "--tokens: expected a value from 1"},
        Case{"a b --colour x", "got --colour"}}) {
    CAPTURE(c.arguments);
    const Outcome bad = run(c.arguments);
    CHECK(bad.status == 2);
    CHECK(bad.text.find(c.message) != std::string::npos);
    CHECK(bad.text.find("usage: bda_engine") != std::string::npos);
  }
  const Outcome missing = run("/nonexistent x");
  CHECK(missing.status == 1);
  CHECK(missing.text.find("/nonexistent/config.json") != std::string::npos);
  const Outcome too_long = run(model + "'The whale' --tokens 512");
  CHECK(too_long.status == 1);
  CHECK(too_long.text.find("tokens of the prompt") != std::string::npos);
}

// On a GPU activations are of 16 bits, and plain and decomposed weights may part where two words
// are nearly as likely; that they agree at first is not by chance among 4096 words.
TEST_CASE("the program on a GPU") {
  const std::string model = "'" BDA_NANO "' ";
  const std::string prompt = "'The President of the United States' --tokens 200 ";
  const Outcome gpu = run(model + prompt + "--device cuda --dtype fp16");
  if (gpu.status != 0) {
    INFO(gpu.text);
    const bool absent = gpu.text.find("built without CUDA") != std::string::npos ||
                        gpu.text.find("no CUDA device") != std::string::npos;
    REQUIRE(absent);
    SKIP("no GPU");
  }
  const Outcome plain = run(model + prompt + "--device cuda --dtype fp16 --weights plain");
  const Outcome cpu = run(model + prompt + "--dtype fp16");
  CHECK(plain.status == 0);
  CHECK(plain.text.substr(0, 150) == gpu.text.substr(0, 150));
  CHECK(cpu.text.substr(0, 150) == gpu.text.substr(0, 150));
}

}  // namespace

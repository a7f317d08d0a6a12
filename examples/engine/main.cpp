// bda_engine MODEL_DIR PROMPT: reads a prompt, writes what the model makes of it.
#include <cstdio>
#include <cstring>
#include <string>

#include "bda/checkpoint/load.hpp"
#include "bda/preparation/prepare.hpp"
#include "cpu.hpp"
#ifdef ENGINE_CUDA
#include "cuda.hpp"
#endif
#include "tokenizer.hpp"

namespace {

struct Arguments {
  std::string model, prompt, weights = "bd", dtype = "fp32", device = "cpu";
  std::int64_t tokens = 200;
};

constexpr const char* kUsage =
    "usage: bda_engine MODEL_DIR PROMPT [--weights plain|bd] [--dtype fp32|fp16|bf16]\n"
    "                  [--device cpu|cuda] [--tokens N]\n";

Arguments parse(int argc, char** argv) {
  if (argc < 3) throw bda::Error("arguments", "MODEL_DIR and PROMPT", std::to_string(argc - 1));
  Arguments a;
  a.model = argv[1], a.prompt = argv[2];
  for (int i = 3; i < argc; i += 2) {
    const std::string option = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    const auto one_of = [&](std::string& to, std::initializer_list<const char*> values) {
      std::string all;
      for (const char* v : values) {
        if (value == v) return void(to = v);
        all.append(all.empty() ? "" : ", ").append(v);
      }
      throw bda::Error(option, "one of " + all, value.empty() ? "nothing" : value);
    };
    if (option == "--weights")
      one_of(a.weights, {"plain", "bd"});
    else if (option == "--dtype")
      one_of(a.dtype, {"fp32", "fp16", "bf16"});
    else if (option == "--device")
      one_of(a.device, {"cpu", "cuda"});
    else if (option == "--tokens")
      bda::check::in_range(option, a.tokens = std::atoll(value.c_str()), 1, 1 << 20);
    else
      throw bda::Error("option", "one of the usage", option);
  }
  return a;
}

template <class Device>
void run(const Arguments& a) {
  using S = typename Device::Stored;
  const auto model = bda::checkpoint::load_transformer<S>(a.model);
  // Decomposed from the values as they are in the file, whatever type they are then stored in.
  const auto original = bda::checkpoint::load_transformer<double>(a.model);
  std::vector<bda::AttentionWeights<S>> attention;
  for (std::size_t i = 0; i < model.layers.size(); ++i)
    attention.push_back(a.weights == "plain"
                            ? model.layers[i].attention
                            : bda::prepare<S>(original.layers[i].attention).weights);
  const engine::Tokenizer tokenizer(std::filesystem::path(a.model) / "tokenizer.json");
  const std::vector<std::int64_t> prompt = tokenizer.encode(a.prompt);
  const auto most = static_cast<std::int64_t>(prompt.size()) + a.tokens;
  bda::check::in_range("tokens of the prompt", static_cast<std::int64_t>(prompt.size()), 1,
                       model.max_positions - a.tokens);
  engine::Engine<Device> engine(model, std::move(attention), most);
  std::printf("%s%s\n", a.prompt.c_str(),
              tokenizer.decode(engine.generate(prompt, a.tokens)).c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments a = parse(argc, argv);
  if (a.device == "cpu") {
    if (a.dtype == "fp32") run<engine::Cpu<float>>(a);
    if (a.dtype == "fp16") run<engine::Cpu<Eigen::half>>(a);
    if (a.dtype == "bf16") run<engine::Cpu<Eigen::bfloat16>>(a);
  } else {
#ifdef ENGINE_CUDA
    if (a.dtype == "fp32") throw bda::Error("--dtype", "fp16 or bf16 on a GPU", a.dtype);
    engine::require_device();
    if (a.dtype == "fp16") run<engine::Cuda<Eigen::half>>(a);
    if (a.dtype == "bf16") run<engine::Cuda<Eigen::bfloat16>>(a);
#else
    throw bda::Error("--device", "cpu, as this program was built without CUDA", a.device);
#endif
  }
  return 0;
} catch (const bda::Error& error) {
  std::fprintf(stderr, "%s\n%s", error.what(), kUsage);
  return error.name() == "arguments" || error.name().starts_with("--") || error.name() == "option"
             ? 2
             : 1;
}

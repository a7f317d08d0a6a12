#pragma once

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "bda/core/dtype.hpp"
#include "bda/core/error.hpp"
#include "bda/preparation/options.hpp"

namespace perplexity {

inline constexpr std::string_view kUsage =
    R"(usage: bda_perplexity MODEL_DIR EVAL.safetensors [options]

Measures a language model before and after Basis Decomposition of its attention.
MODEL_DIR holds config.json and model.safetensors (or shards with their index) of a
deepseek_v2, gpt2 or llama checkpoint, as published or as bda_convert made it. EVAL.safetensors holds `tokens` (I32 or I64,
[windows, tokens]) and may hold `nll` ([windows, tokens - 1]), to check the original against.

  --basis NAME        first_r, last_r, residual_min, best_slice, joint_pivot or latent_rotation
                      (default: latent_rotation for latent attention, else joint_pivot)
  --sides LIST        qk, vo or qk,vo (default: every side that is exact)
  --dtype TYPE        fp64, fp32, fp16 or bf16: how all weights are stored, original and
                      decomposed alike (default: as in the checkpoint)
  --attention-dtype T with --device cuda --dtype bf16: fp16 or bf16, how attention layers are
                      stored and what they compute in, original and decomposed alike (default:
                      fp16 where layers have no latent to rotate)
  --rounding MODE     aware or plain: how the decomposition is rounded to 16 bits (default: aware)
  --original DIR      with a converted MODEL_DIR: the checkpoint it was made from, to compare with
  --windows N         the first N windows only
  --device NAME       cpu or cuda: where the model runs; cuda takes fp16 and bf16, and models
                      without experts (default: cpu)
  --threads N         (default: one for each hardware thread)
  --json FILE         adds the run to the JSON array in FILE, in place of an equal run
  --force-inexact     decompose the sides asked for even where the result is not the same
                      attention; for experiments
  --help

Exit status: 0; 1 where something failed or, in fp64, the original disagrees with `nll`;
2 for bad arguments.
)";

enum class Device { kCpu, kCuda };

/// What the command line asks for.
struct Arguments {
  std::filesystem::path model, evaluation;
  std::optional<std::filesystem::path> original;  // of a converted model
  std::optional<bda::BasisStrategy> basis;
  std::optional<bda::Sides> sides;
  std::optional<bda::DType> dtype;
  std::optional<bda::DType> attention_dtype;  // unset: as the usage says
  bda::Rounding rounding = bda::Rounding::kAware;
  std::optional<std::int64_t> windows;
  int threads = 1;
  Device device = Device::kCpu;
  std::optional<std::filesystem::path> json;
  bool force_inexact = false;
  bool help = false;
};

inline bda::Sides parse_sides(std::string_view text) {
  if (text == "qk") return {.qk = true, .vo = false};
  if (text == "vo") return {.qk = false, .vo = true};
  if (text == "qk,vo" || text == "vo,qk") return {.qk = true, .vo = true};
  throw bda::Error("--sides", "qk, vo or qk,vo", std::string(text));
}

/// The inverse of parse_sides.
inline std::string name_of(bda::Sides sides) {
  return std::string(sides.qk ? "qk" : "") + (sides.qk && sides.vo ? "," : "") +
         (sides.vo ? "vo" : "");
}

inline bda::Rounding parse_rounding(std::string_view text) {
  if (text == "aware") return bda::Rounding::kAware;
  if (text == "plain") return bda::Rounding::kPlain;
  throw bda::Error("--rounding", "aware or plain", std::string(text));
}

inline Device parse_device(std::string_view text) {
  if (text == "cpu") return Device::kCpu;
  if (text == "cuda") return Device::kCuda;
  throw bda::Error("--device", "cpu or cuda", std::string(text));
}

inline std::string_view name_of(Device device) { return device == Device::kCuda ? "cuda" : "cpu"; }

inline std::string_view name_of(bda::Rounding rounding) {
  return rounding == bda::Rounding::kAware ? "aware" : "plain";
}

inline std::int64_t parse_count(std::string_view option, std::string_view text,
                                std::int64_t largest) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 1 || value > largest)
    throw bda::Error(std::string(option), "an integer from 1 to " + std::to_string(largest),
                     "\"" + std::string(text) + "\"");
  return value;
}

/// Throws bda::Error for anything but the usage above. `given` is argv without the program's name.
inline Arguments parse_arguments(std::span<const char* const> given) {
  Arguments args;
  args.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  int positional = 0;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const std::string_view option = given[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 == given.size()) throw bda::Error(std::string(option), "a value", "none");
      return given[++i];
    };
    if (option == "--help")
      args.help = true;
    else if (option == "--basis")
      args.basis = bda::parse_basis_strategy(value());
    else if (option == "--sides")
      args.sides = parse_sides(value());
    else if (option == "--dtype")
      args.dtype = bda::parse_dtype(value());
    else if (option == "--attention-dtype")
      args.attention_dtype = bda::parse_dtype(value());
    else if (option == "--rounding")
      args.rounding = parse_rounding(value());
    else if (option == "--windows")
      args.windows = parse_count(option, value(), std::int64_t{1} << 40);
    else if (option == "--threads")
      args.threads = static_cast<int>(parse_count(option, value(), 4096));
    else if (option == "--device")
      args.device = parse_device(value());
    else if (option == "--original")
      args.original = value();
    else if (option == "--json")
      args.json = value();
    else if (option == "--force-inexact")
      args.force_inexact = true;
    else if (option.starts_with("-"))
      throw bda::Error("argument", "an option of the usage", std::string(option));
    else if (++positional == 1)
      args.model = option;
    else if (positional == 2)
      args.evaluation = option;
    else
      throw bda::Error("arguments", "MODEL_DIR and EVAL.safetensors", std::string(option) + " too");
  }
  if (positional < 2 && !args.help)
    throw bda::Error("arguments", "MODEL_DIR and EVAL.safetensors",
                     positional == 0 ? "neither" : "MODEL_DIR alone");
  return args;
}

}  // namespace perplexity

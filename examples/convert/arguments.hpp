#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "../perplexity/arguments.hpp"
#include "bda/checkpoint/conversion.hpp"

namespace convert {

inline constexpr std::string_view kUsage =
    R"(usage: bda_convert IN_DIR OUT_DIR [options]
       bda_convert --plan CONFIG.json ...

Turns the attention of a Hugging Face checkpoint into its basis-decomposed form. OUT_DIR becomes a
checkpoint that the library reads; everything but the attention is copied byte for byte. Killed at
any moment it leaves a complete checkpoint or none, and can be run again.

  --basis NAME        first_r, last_r, residual_min, best_slice, joint_pivot or latent_rotation
                      (default: latent_rotation for latent attention, else joint_pivot)
  --dtype TYPE        what the attention is stored in: keep, fp16, bf16 or fp32 (default: keep)
  --sides LIST        auto, qk, vo or qk,vo (default: auto, each module's sides that are exact)
  --rounding MODE     aware or plain: how the decomposition is rounded to 16 bits (default: aware)
  --verify            reads the result again and compares what it computes with the original
  --map FILE          describes the tensors of a model that is none of the known families
                      (include/bda/checkpoint/families/mapped.hpp says how)
  --threads N         (default: one for each hardware thread)
  --shard-size MB     at most so much in a file, but for larger tensors (default: 4000)
  --report FILE       writes the table as JSON
  --plan              says what a conversion would save, from config.json files alone
  --help

Exit status: 0; 1 where something failed; 2 for bad arguments.
)";

/// What the command line asks for.
struct Arguments {
  std::filesystem::path input, output;
  std::vector<std::filesystem::path> plan;  // config.json files
  bda::checkpoint::ConversionOptions options;
  std::optional<std::filesystem::path> report;
  bool help = false;
};

/// Throws bda::Error for anything but the usage above. `given` is argv without the program's name.
inline Arguments parse_arguments(std::span<const char* const> given) {
  Arguments args;
  args.options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::filesystem::path> paths;
  bool plan = false;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const std::string_view option = given[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 == given.size()) throw bda::Error(std::string(option), "a value", "none");
      return given[++i];
    };
    if (option == "--help")
      args.help = true;
    else if (option == "--plan")
      plan = true;
    else if (option == "--verify")
      args.options.verify = true;
    else if (option == "--basis")
      args.options.basis = bda::parse_basis_strategy(value());
    else if (option == "--rounding")
      args.options.rounding = perplexity::parse_rounding(value());
    else if (option == "--map")
      args.options.map = value();
    else if (option == "--threads")
      args.options.threads = static_cast<int>(perplexity::parse_count(option, value(), 4096));
    else if (option == "--shard-size")
      args.options.shard_bytes =
          static_cast<std::uint64_t>(perplexity::parse_count(option, value(), 1'000'000)) *
          1'000'000;
    else if (option == "--report")
      args.report = value();
    else if (option == "--dtype") {
      const std::string_view name = value();
      if (name == "keep")
        args.options.dtype = std::nullopt;
      else if (name == "fp16" || name == "bf16" || name == "fp32")
        args.options.dtype = bda::parse_dtype(name);
      else
        throw bda::Error("--dtype", "keep, fp16, bf16 or fp32", std::string(name));
    } else if (option == "--sides") {
      const std::string_view name = value();
      args.options.sides = std::nullopt;
      if (name != "auto") args.options.sides = perplexity::parse_sides(name);
    } else if (option.starts_with("-"))
      throw bda::Error("argument", "an option of the usage", std::string(option));
    else
      paths.emplace_back(option);
  }
  if (args.help) return args;
  const std::string count = std::to_string(paths.size());
  if (plan) {
    if (paths.empty()) throw bda::Error("arguments", "a CONFIG.json behind --plan", "none");
    args.plan = std::move(paths);
    return args;
  }
  if (paths.size() != 2) throw bda::Error("arguments", "IN_DIR and OUT_DIR", count + " of them");
  args.input = paths[0];
  args.output = paths[1];
  return args;
}

}  // namespace convert

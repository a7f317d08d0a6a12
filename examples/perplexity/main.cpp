#include <cstdlib>
#include <exception>
#include <iostream>
#include <span>

#include "arguments.hpp"
#include "bda/checkpoint/load.hpp"
#include "compare_models.hpp"
#include "report.hpp"
#include "stored_dtype.hpp"

namespace {

enum ExitStatus { kSuccess = 0, kFailure = 1, kBadArguments = 2 };

perplexity::Comparison compare(const perplexity::Arguments& args) {
  const bda::checkpoint::Checkpoint checkpoint = bda::checkpoint::open_checkpoint(args.model);
  switch (args.dtype ? *args.dtype : perplexity::stored_dtype(checkpoint.tensors)) {
    case bda::DType::kF64:
      return perplexity::compare<double>(args, checkpoint);
    case bda::DType::kF32:
      return perplexity::compare<float>(args, checkpoint);
    case bda::DType::kF16:
      return perplexity::compare<Eigen::half>(args, checkpoint);
    case bda::DType::kBF16:
      return perplexity::compare<Eigen::bfloat16>(args, checkpoint);
  }
  std::abort();  // DType has no other value
}

}  // namespace

int main(int argc, char** argv) {
  perplexity::Arguments args;
  try {
    args = perplexity::parse_arguments(std::span<const char* const>(argv, argv + argc).subspan(1));
  } catch (const bda::Error& error) {
    std::cerr << error.what() << "\n\n" << perplexity::kUsage;
    return kBadArguments;
  }
  if (args.help) {
    std::cout << perplexity::kUsage;
    return kSuccess;
  }
  try {
    if (args.json) perplexity::check_json(*args.json);
    const perplexity::Comparison result = compare(args);
    perplexity::print(result, std::cout);
    if (args.json) perplexity::add_to_json(result, *args.json);
    return result.agrees().value_or(true) ? kSuccess : kFailure;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return kFailure;
  }
}

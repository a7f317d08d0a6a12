#include <exception>
#include <iostream>
#include <memory>
#include <span>

#include "../perplexity/progress_bar.hpp"
#include "arguments.hpp"
#include "conversion.hpp"
#include "report.hpp"

namespace {

enum ExitStatus { kSuccess = 0, kFailure = 1, kBadArguments = 2 };

void plan(const std::vector<std::filesystem::path>& files) {
  std::vector<std::string> names;
  std::vector<bda::checkpoint::ConversionPlan> plans;
  for (const std::filesystem::path& path : files) {
    const bda::checkpoint::MappedFile file(path);
    plans.push_back(bda::checkpoint::plan_conversion(
        bda::checkpoint::parse_json_object(file.text(), path.string()), path.string()));
    // config.json is every model's; its folder has the name.
    const bool generic = path.filename() == "config.json";
    names.push_back(generic && path.has_parent_path() ? path.parent_path().filename().string()
                                                      : path.stem().string());
  }
  convert::print(names, plans, std::cout);
}

void run(convert::Arguments& args) {
  std::unique_ptr<perplexity::ProgressBar> bar;
  std::string stage;
  args.options.progress = [&](const bda::checkpoint::ConversionProgress& progress) {
    if (stage != progress.stage) {
      stage = progress.stage;
      bar.reset();
      bar = std::make_unique<perplexity::ProgressBar>(stage, progress.total);
    }
    bar->advance_to(progress.done);
  };
  const bda::checkpoint::ConversionReport report =
      bda::checkpoint::convert_checkpoint(args.input, args.output, args.options);
  bar.reset();
  convert::print(report, std::cout);
  if (args.report) convert::write_json(report, *args.report);
}

}  // namespace

int main(int argc, char** argv) {
  convert::Arguments args;
  try {
    args = convert::parse_arguments(std::span<const char* const>(argv, argv + argc).subspan(1));
  } catch (const bda::Error& error) {
    std::cerr << error.what() << "\n\n" << convert::kUsage;
    return kBadArguments;
  }
  if (args.help) {
    std::cout << convert::kUsage;
    return kSuccess;
  }
  try {
    if (args.plan.empty())
      run(args);
    else
      plan(args.plan);
    return kSuccess;
  } catch (const std::exception& error) {
    std::cerr << "error: " << convert::printable(error.what()) << '\n';
    return kFailure;
  }
}

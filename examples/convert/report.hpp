#pragma once

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "bda/checkpoint/conversion.hpp"
#include "bda/checkpoint/plan.hpp"

namespace convert {

/// A table of the modules, then totals.
void print(const bda::checkpoint::ConversionReport& report, std::ostream& out);

/// A Markdown table, a row for each plan; `names` are the models'.
void print(const std::vector<std::string>& names,
           const std::vector<bda::checkpoint::ConversionPlan>& plans, std::ostream& out);

/// Throws bda::Error where it cannot be written.
void write_json(const bda::checkpoint::ConversionReport& report, const std::filesystem::path& file);

/// Text of a file's making (names of tensors, say) as a terminal may see it: control characters
/// are shown as \x1b.
std::string printable(const std::string& text);

}  // namespace convert

#pragma once

#include <filesystem>
#include <ostream>

#include "comparison.hpp"

namespace perplexity {

/// The result as text: perplexities, a table of the layers, the weights saved.
void print(const Comparison& result, std::ostream& out);

/// Throws bda::Error unless `add_to_json` can take `file`: to be called before the work, not after.
void check_json(const std::filesystem::path& file);

/// Adds the run to the JSON array in `file`, which is made where it does not exist. A run of the
/// same model, evaluation file, type, basis, sides, rounding and windows is replaced, so that a
/// script can be repeated. Throws bda::Error where the file holds something else or cannot be
/// written; it is never left half written.
void add_to_json(const Comparison& result, const std::filesystem::path& file);

}  // namespace perplexity

#pragma once

#include "arguments.hpp"
#include "bda/checkpoint/load.hpp"
#include "comparison.hpp"

namespace perplexity {

/// Loads the model with all weights stored in T, decomposes the attention weights so stored into T
/// again and measures both: the change is the decomposition's alone, not the original's rounding.
/// Throws bda::Error. Instantiated for the library's four storage types in compare_*.cpp.
template <class T>
Comparison compare(const Arguments& args, const bda::checkpoint::Checkpoint& checkpoint);

}  // namespace perplexity

#include "compare.hpp"

namespace perplexity {
template Comparison compare<double>(const Arguments&, const bda::checkpoint::Checkpoint&);
}

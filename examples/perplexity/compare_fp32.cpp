#include "compare.hpp"

namespace perplexity {
template Comparison compare<float>(const Arguments&, const bda::checkpoint::Checkpoint&);
}

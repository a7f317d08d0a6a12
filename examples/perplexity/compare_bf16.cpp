#include "compare.hpp"

namespace perplexity {
template Comparison compare<Eigen::bfloat16>(const Arguments&, const bda::checkpoint::Checkpoint&);
}

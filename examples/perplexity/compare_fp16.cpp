#include "compare.hpp"

namespace perplexity {
template Comparison compare<Eigen::half>(const Arguments&, const bda::checkpoint::Checkpoint&);
}

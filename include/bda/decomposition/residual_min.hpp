#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/decompose_heads.hpp"
#include "bda/decomposition/head_factors.hpp"

namespace bda::inline v0 {

/// S = the first or the last r channels, whichever leaves the smaller mean residual over the heads
/// (BD paper, section 3.2), evaluated in the storage precision: in double both are rounding noise.
struct ResidualMin {
  static constexpr std::string_view name = "residual_min";

  /// The residuals are measured on this many evenly spaced rows of each left factor: over all heads
  /// some million entries, a mean known to a part in a thousand at an eighth of the cost.
  std::int64_t rows = 256;

  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions& options) const {
    const std::int64_t d = heads[0].channels(), r = heads[0].rank();
    std::vector<HeadFactors<S>> sampled(heads.size());
    for (std::size_t h = 0; h < heads.size(); ++h) {
      const Eigen::Index m = heads[h].left.rows(), n = std::min<Eigen::Index>(m, rows);
      sampled[h].right = heads[h].right;
      sampled[h].left.resize(n, r);
      for (Eigen::Index i = 0; i < n; ++i) sampled[h].left.row(i) = heads[h].left.row(i * m / n);
    }
    const std::span<const HeadFactors<S>> sample(sampled);
    const IndexSet first = IndexSet::slice(d, 0, r), last = IndexSet::slice(d, d - r, r);
    const bool keep_first =
        mean_residual(sample, first, options) <= mean_residual(sample, last, options);
    return {keep_first ? first : last, {}};
  }

 private:
  /// Infinite where the cut cannot represent a head at all: the other one is taken then.
  template <class S>
  static double mean_residual(std::span<const HeadFactors<S>> heads, const IndexSet& basis,
                              const SelectionOptions& options) {
    const auto measure = [&]<class Work>(Work) {
      return decompose_heads<Work>(heads, basis, options.storage, Rounding::kPlain, options.threads)
          .report.mean_residual();
    };
    try {
      return size_of(options.storage) == 2 ? measure(float{}) : measure(double{});
    } catch (const Error&) {
      return std::numeric_limits<double>::infinity();
    }
  }
};

}  // namespace bda::inline v0

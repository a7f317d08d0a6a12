#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/head_span.hpp"

namespace bda::inline v0 {

/// The contiguous slice of channels that amplifies rounding least, for attention whose channels
/// cannot be permuted for free.
///
/// Only offsets that are multiples of `multiple` are tried (0 always is one, d - r need not be):
/// a kernel that reads the slice in place relies on the alignment.
///
/// Minimises the sum of alpha² (noise.hpp) over heads: that is the expected squared relative error
/// of the layer's products, and since alpha varies over decades from slice to slice the sum is
/// ruled by the worst head. A sum of logarithms would give the tail away.
struct BestSlice {
  static constexpr std::string_view name = "best_slice";

  std::int64_t multiple = 64;

  /// Throws Error on invalid heads, a rank-deficient head, `multiple` < 1, or where every slice
  /// has dependent channels in some head.
  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions& options) const {
    check::at_least("BestSlice.multiple", multiple, 1);
    const std::vector<HeadSpan> spans = head_spans(heads, options.threads);
    const std::int64_t d = heads[0].channels(), r = heads[0].rank();
    const std::int64_t offsets = (d - r) / multiple + 1;

    Eigen::MatrixXd squared(offsets, static_cast<Eigen::Index>(spans.size()));  // alpha²
    parallel_for(static_cast<std::int64_t>(spans.size()), options.threads, [&](std::int64_t h) {
      const HeadSpan& head = spans[static_cast<std::size_t>(h)];
      const Eigen::VectorXd energy = basis_energy(head.span, head.weight);
      for (std::int64_t i = 0; i < offsets; ++i)
        squared(i, h) = squared_noise_amplification<double>(head.span.middleRows(i * multiple, r),
                                                            energy.segment(i * multiple, r));
    });

    const Eigen::VectorXd total = squared.rowwise().sum();
    Eigen::Index best = 0;
    if (!std::isfinite(total.minCoeff(&best)))
      throw Error("heads", "a slice of " + std::to_string(r) + " channels independent in each head",
                  "dependent channels in all " + std::to_string(offsets) +
                      " slices at multiples of " + std::to_string(multiple));
    return {IndexSet::slice(d, best * multiple, r), {}};
  }
};

}  // namespace bda::inline v0

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/coefficients.hpp"
#include "bda/decomposition/head_factors.hpp"
#include "bda/decomposition/rounding.hpp"

namespace bda::inline v0 {

/// S = the first or the last r channels, whichever leaves the smaller mean residual over the heads
/// (BD paper, section 3.2), evaluated in the storage precision: in double both are rounding noise.
struct ResidualMin {
  static constexpr std::string_view name = "residual_min";

  /// The residuals are measured on this many evenly spaced rows of each left factor: over all heads
  /// a million entries, a mean known to a part in a thousand at a sixteenth of the cost.
  std::int64_t rows = 128;

  /// Throws Error on invalid heads.
  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions& options) const {
    check::at_least("ResidualMin.rows", rows, 1);
    validate(heads);
    const std::int64_t d = heads[0].channels(), r = heads[0].rank();
    const IndexSet first = IndexSet::slice(d, 0, r), last = IndexSet::slice(d, d - r, r);
    const bool is_short = size_of(options.storage) == 2;
    Eigen::ArrayXXd residual(static_cast<Eigen::Index>(heads.size()), 2);
    parallel_for(residual.size(), options.threads, [&](std::int64_t i) {
      const std::int64_t h = i / 2;
      const HeadFactors<S>& head = heads[static_cast<std::size_t>(h)];
      const IndexSet& basis = i % 2 == 0 ? first : last;
      residual(h, i % 2) = is_short ? sampled_residual<float>(head, basis, options.storage)
                                    : sampled_residual<double>(head, basis, options.storage);
    });
    return {residual.col(0).mean() <= residual.col(1).mean() ? first : last, {}};
  }

 private:
  /// |Ŵ - W| / |W| over the sampled rows. Infinite where the cut cannot represent the head at all
  /// or what it takes does not fit the storage type: the other one is taken then.
  template <class Work, class S>
  [[nodiscard]] double sampled_residual(const HeadFactors<S>& head, const IndexSet& basis,
                                        DType storage) const {
    const Eigen::Index m = head.left.rows(), n = std::min<Eigen::Index>(m, rows);
    linalg::RowMatrix<Work> left(n, head.rank());
    for (Eigen::Index i = 0; i < n; ++i)
      left.row(i) = head.left.row(i * m / n).template cast<Work>();
    std::int64_t rank = 0;
    const auto solution = detail::try_solve(head.right, basis, rank);
    if (!solution) return std::numeric_limits<double>::infinity();
    RoundedHead<Work> rounded;
    try {
      rounded = round_plain(storage, left, *solution, "head");
    } catch (const Error&) {
      return std::numeric_limits<double>::infinity();
    }
    const linalg::RowMatrix<Work> rest = left * solution->rest.template cast<Work>().transpose();
    const double norm2 = static_cast<double>((rounded.basis - rounded.basis_error).squaredNorm()) +
                         static_cast<double>(rest.squaredNorm());
    const double error2 =
        static_cast<double>(rounded.basis_error.squaredNorm()) +
        static_cast<double>(
            (rounded.basis * rounded.coefficients.transpose() - rest).squaredNorm());
    return norm2 > 0 ? std::sqrt(error2 / norm2) : 0;
  }
};

}  // namespace bda::inline v0

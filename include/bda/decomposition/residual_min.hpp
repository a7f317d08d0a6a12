#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

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

  /// The residuals are measured on so many evenly spaced rows of each left factor, and channels
  /// besides the basis: over all heads half a million entries, one in 32 of a
  /// DeepSeek-V2-Lite layer.
  std::int64_t rows = 128, channels = 128;

  /// Throws Error on invalid heads.
  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions& options) const {
    check::at_least("ResidualMin.rows", rows, 1);
    check::at_least("ResidualMin.channels", channels, 1);
    check_shapes(heads);
    const std::int64_t d = heads[0].channels(), r = heads[0].rank();
    const IndexSet first = IndexSet::slice(d, 0, r), last = IndexSet::slice(d, d - r, r);
    const bool is_short = size_of(options.storage) == 2;
    std::vector<std::array<double, 2>> residuals(heads.size());
    parallel_for(static_cast<std::int64_t>(heads.size()), options.threads, [&](std::int64_t i) {
      const auto h = static_cast<std::size_t>(i);
      check_finite(heads[h], h);
      const auto measure = [&](const IndexSet& basis) {
        return is_short ? sampled_residual<float>(heads[h], basis, options.storage)
                        : sampled_residual<double>(heads[h], basis, options.storage);
      };
      residuals[h] = {measure(first), measure(last)};
    });
    double total_first = 0, total_last = 0;
    for (const auto& [of_first, of_last] : residuals) {
      total_first += of_first;
      total_last += of_last;
    }
    return {total_first <= total_last ? first : last, {}};
  }

 private:
  /// `samples` of `from`, evenly spaced.
  static std::vector<std::int64_t> spread(const std::vector<std::int64_t>& from,
                                          std::int64_t samples) {
    const auto all = static_cast<std::int64_t>(from.size()), n = std::min(all, samples);
    std::vector<std::int64_t> chosen;
    for (std::int64_t i = 0; i < n; ++i)
      chosen.push_back(from[static_cast<std::size_t>(i * all / n)]);
    return chosen;
  }

  /// |Ŵ - W| / |W| as sampled. Infinite where the cut cannot represent the head at all or what it
  /// takes does not fit the storage type: the other one is taken then.
  template <class Work, class S>
  [[nodiscard]] double sampled_residual(const HeadFactors<S>& head, const IndexSet& basis,
                                        DType storage) const {
    const Eigen::Index m = head.left.rows(), n = std::min<Eigen::Index>(m, rows);
    linalg::RowMatrix<Work> left(n, head.rank());
    for (Eigen::Index i = 0; i < n; ++i)
      left.row(i) = head.left.row(i * m / n).template cast<Work>();
    std::int64_t rank = 0;
    const auto& all = basis.rest();
    auto solution = detail::try_solve(head.right, basis, spread(all, channels), rank);
    if (rank < basis.size()) solution = detail::try_solve(head.right, basis, all, rank);
    if (!solution) return std::numeric_limits<double>::infinity();
    using Mat = linalg::RowMatrix<Work>;
    const Mat exact = linalg::multiply_transposed(left, Mat(solution->basis.template cast<Work>()));
    Mat stored = exact, coefficients = solution->coefficients.template cast<Work>();
    try {
      detail::round_to(storage, stored, "basis");
      detail::round_to(storage, coefficients, "coefficients");
    } catch (const Error&) {
      return std::numeric_limits<double>::infinity();
    }
    const Mat rest = linalg::multiply_transposed(left, Mat(solution->rest.template cast<Work>()));
    Mat rest_error = -rest;
    linalg::add_product_transposed(rest_error, stored, coefficients);
    // What the sampled channels stand for
    const double share =
        rest.cols() > 0 ? static_cast<double>(all.size()) / static_cast<double>(rest.cols()) : 0;
    const double norm2 =
        static_cast<double>(exact.squaredNorm()) + share * static_cast<double>(rest.squaredNorm());
    const double error2 = static_cast<double>((stored - exact).squaredNorm()) +
                          share * static_cast<double>(rest_error.squaredNorm());
    return norm2 > 0 ? std::sqrt(error2 / norm2) : 0;
  }
};

}  // namespace bda::inline v0

#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "bda/conv_basis/basis.hpp"
#include "bda/conv_basis/columns.hpp"

namespace bda::inline v0::conv_basis {

/// What is assumed of H~ = H + R: H has a k-conv basis with m_k >= T; the first T entries of
/// b_j + ... + b_i have an l1 norm of at least delta for all j <= i; no entry of R exceeds epsilon,
/// and epsilon <= delta / (5 T) (paper, definitions of (T, delta)-non-degenerate and
/// epsilon-close).
struct RecoverOptions {
  std::int64_t window = 1;  // T
  double delta = 0;
  double epsilon = 0;  // has to cover the rounding of H~'s own entries too
  /// Recovery stops after so many terms, whatever is left.
  std::int64_t max_terms = std::numeric_limits<std::int64_t>::max();
  /// Columns read afterwards, evenly spaced and one before every change, to look for deviations.
  std::int64_t sampled_columns = 16;
};

/// A recovered basis and what was seen of the assumptions.
struct Recovery {
  ConvBasis basis;
  /// Largest |H~ - recovered| over the sampled columns, and where; at most 2 epsilon (one epsilon
  /// in the column itself, one in the column the basis was read from) if the assumptions hold.
  double largest_deviation = 0;
  std::int64_t deviation_column = 0;
  double deviation_bound = 0;  // 2 epsilon
  /// Smallest l1 norm over the first T entries of b_j + ... + b_i, j <= i, as recovered; at least
  /// delta - 2 T epsilon if the assumptions hold.
  double smallest_norm = 0;
  double norm_bound = 0;          // delta - 2 T epsilon
  bool stopped_early = false;     // max_terms were found, and there was more
  std::int64_t columns_read = 0;  // of them terms() + sampled in full, the others T entries

  /// Whether nothing that was looked at contradicts the assumptions.
  [[nodiscard]] bool assumptions_held() const {
    return !stopped_early && largest_deviation <= deviation_bound && smallest_norm >= norm_bound;
  }
};

/// The basis whose i-th column is that of `source` at starts[i], ascending: O(n) entries each.
template <ColumnSource Source>
[[nodiscard]] ConvBasis basis_from_columns(const Source& source,
                                           const std::vector<std::int64_t>& starts) {
  ConvBasis basis(source.size());
  for (std::int64_t start : starts) {
    check::in_range("starts", start, 0, source.size() - 1);
    basis.add_column(source.column(start, source.size() - start));
  }
  return basis;
}

namespace detail {

/// The search for the next column at which H changes.
template <class Source>
class ColumnSearch {
 public:
  ColumnSearch(const Source& source, const RecoverOptions& options)
      : source_(source),
        window_(options.window),
        threshold_(options.delta - 2 * static_cast<double>(options.window) * options.epsilon),
        expected_(Eigen::VectorXd::Zero(options.window)) {}

  /// The first column from `first` on that differs from the last found, or n. Once a term has
  /// begun, every later column shows it, as no sum of neighbouring terms is small: so the question
  /// can be bisected.
  [[nodiscard]] std::int64_t next(std::int64_t first) {
    std::int64_t low = first, high = source_.size() - window_;
    if (low > high || !differs(high)) return source_.size();
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (differs(middle))
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }
  void found(const Eigen::VectorXd& column) { expected_ = column.head(window_); }
  [[nodiscard]] std::int64_t columns_read() const { return columns_read_; }

 private:
  [[nodiscard]] bool differs(std::int64_t j) {
    ++columns_read_;
    return (source_.column(j, window_) - expected_).template lpNorm<1>() >= threshold_;
  }

  const Source& source_;
  std::int64_t window_;
  double threshold_;
  Eigen::VectorXd expected_;
  std::int64_t columns_read_ = 0;
};

/// Fills in the report of `r`.
template <class Source>
void look_for_violations(const Source& source, const RecoverOptions& options, Recovery& r) {
  const std::int64_t n = source.size(), k = r.basis.terms();
  std::vector<std::int64_t> columns;
  for (std::int64_t i = 0; i < options.sampled_columns; ++i)
    columns.push_back(n * (2 * i + 1) / (2 * options.sampled_columns));
  // Where a change was missed, the last column of a run shows it most.
  // Runs at equal distances; the last run, which no search looks behind, is always one of them.
  const std::int64_t runs = std::min(k, options.sampled_columns);
  for (std::int64_t i = 1; i <= runs; ++i) columns.push_back(r.basis.end(i * k / runs - 1) - 1);
  for (std::int64_t j : columns) {
    const double deviation = (source.column(j, n - j) - r.basis.column_of_matrix(j, n - j))
                                 .template lpNorm<Eigen::Infinity>();
    if (deviation > r.largest_deviation) {
      r.largest_deviation = deviation;
      r.deviation_column = j;
    }
  }
  r.columns_read += static_cast<std::int64_t>(columns.size());
  // b_j + ... + b_i is column i less column j - 1.
  r.smallest_norm = std::numeric_limits<double>::infinity();
  for (std::int64_t i = 0; i < k; ++i) {
    const auto head = [&](std::int64_t t) { return r.basis.column(t).head(options.window); };
    r.smallest_norm = std::min(r.smallest_norm, head(i).template lpNorm<1>());
    for (std::int64_t j = 0; j < i; ++j)
      r.smallest_norm = std::min(r.smallest_norm, (head(i) - head(j)).template lpNorm<1>());
  }
}

}  // namespace detail

/// Finds the basis of an epsilon-close, (T, delta)-non-degenerate matrix by binary search over its
/// columns (paper, algorithms 2 and 3): k log2(n) probes of T entries and k whole columns, so
/// O(k d (T log n + n)) for scores; the n x n matrix is never formed. Under the assumptions every
/// m_i is exact and every recovered entry within epsilon of H; whether they hold is looked at on
/// sampled columns and reported, not enforced.
///
/// Throws unless 1 <= T <= n, delta > 0, 0 <= epsilon <= delta / (5 T), max_terms >= 1 and
/// sampled_columns >= 0.
template <ColumnSource Source>
[[nodiscard]] Recovery recover(const Source& source, const RecoverOptions& options) {
  const std::int64_t n = source.size();
  check::in_range("options.window", options.window, 1, n);
  check::at_least("options.max_terms", options.max_terms, 1);
  check::at_least("options.sampled_columns", options.sampled_columns, 0);
  if (!(options.delta > 0) || !std::isfinite(options.delta))
    throw Error("options.delta", "a positive number", std::to_string(options.delta));
  const double largest = options.delta / (5 * static_cast<double>(options.window));
  if (!(options.epsilon >= 0 && options.epsilon <= largest))
    throw Error("options.epsilon", "from 0 to delta / (5 window) = " + std::to_string(largest),
                std::to_string(options.epsilon));

  Recovery result{ConvBasis(n)};
  result.deviation_bound = 2 * options.epsilon;
  result.norm_bound = options.delta - 2 * static_cast<double>(options.window) * options.epsilon;
  detail::ColumnSearch<Source> search(source, options);
  std::int64_t first = 0;
  for (std::int64_t j = search.next(first); j < n; j = search.next(first)) {
    if (result.basis.terms() == options.max_terms) {
      result.stopped_early = true;
      break;
    }
    result.basis.add_column(source.column(j, n - j));
    search.found(result.basis.column(result.basis.terms() - 1));
    first = j + 1;
  }
  result.columns_read = search.columns_read() + result.basis.terms();
  detail::look_for_violations(source, options, result);
  return result;
}

}  // namespace bda::inline v0::conv_basis

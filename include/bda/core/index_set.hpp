#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "bda/core/checks.hpp"

namespace bda::inline v0 {

/// The basis channels S of a decomposition: r distinct channels out of `dim`, in ascending order.
class IndexSet {
 public:
  IndexSet() = default;

  /// `indices` in any order; throws on a value outside [0, dim) or a repeated one.
  IndexSet(std::int64_t dim, std::vector<std::int64_t> indices)
      : dim_(dim), indices_(std::move(indices)) {
    std::sort(indices_.begin(), indices_.end());
    for (std::size_t i = 0; i < indices_.size(); ++i) {
      check::in_range("IndexSet.indices", indices_[i], 0, dim - 1);
      if (i > 0 && indices_[i] == indices_[i - 1])
        throw Error("IndexSet.indices", "distinct channels",
                    "channel " + std::to_string(indices_[i]) + " twice");
    }
  }

  /// The contiguous channels [offset, offset + size).
  static IndexSet slice(std::int64_t dim, std::int64_t offset, std::int64_t size) {
    check::in_range("IndexSet.slice.size", size, 0, dim);
    check::in_range("IndexSet.slice.offset", offset, 0, dim - size);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(size));
    std::iota(indices.begin(), indices.end(), offset);
    return {dim, std::move(indices)};
  }

  /// d, the number of channels chosen from.
  [[nodiscard]] std::int64_t dim() const { return dim_; }
  /// r, the number of basis channels.
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(indices_.size()); }
  [[nodiscard]] std::int64_t operator[](std::int64_t i) const {
    return indices_[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] const std::vector<std::int64_t>& indices() const { return indices_; }

  /// True where the channels are contiguous: then applying S costs a column offset, not a gather.
  [[nodiscard]] bool is_slice() const {
    return indices_.empty() || indices_.back() - indices_.front() + 1 == size();
  }
  [[nodiscard]] std::int64_t offset() const { return indices_.empty() ? 0 : indices_.front(); }

  /// The other d - r channels, ascending: the order of the coefficients' rows.
  [[nodiscard]] std::vector<std::int64_t> rest() const {
    std::vector<std::int64_t> others;
    others.reserve(static_cast<std::size_t>(dim_ - size()));
    auto next = indices_.begin();
    for (std::int64_t channel = 0; channel < dim_; ++channel) {
      if (next != indices_.end() && *next == channel)
        ++next;
      else
        others.push_back(channel);
    }
    return others;
  }

  friend bool operator==(const IndexSet&, const IndexSet&) = default;

 private:
  std::int64_t dim_ = 0;
  std::vector<std::int64_t> indices_;
};

}  // namespace bda::inline v0

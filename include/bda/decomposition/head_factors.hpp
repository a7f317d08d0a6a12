#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bda/core/checks.hpp"
#include "bda/linalg/eigen.hpp"

namespace bda::inline v0 {

/// One head's product W = left rightᵀ, [m, d] of rank r, known by its factors.
///
/// The basis is chosen among the d channels, the rows of `right`. The QK side is left = Wq,
/// right = Wk; the VO side, transposed, is left = Woᵀ, right = Wv. With grouped queries, `left`
/// holds the group's factors one below the other.
template <class S>
struct HeadFactors {
  linalg::RowMatrix<S> left;        // [m, r]; tall, so kept in the narrowest type that is exact
  linalg::RowMatrix<double> right;  // [d, r]

  [[nodiscard]] std::int64_t channels() const { return right.rows(); }
  [[nodiscard]] std::int64_t rank() const { return right.cols(); }
};

/// Throws unless the heads agree in d and r, fit together, and 1 <= r <= d.
template <class S>
void check_shapes(std::span<const HeadFactors<S>> heads) {
  check::at_least("heads.size", static_cast<std::int64_t>(heads.size()), 1);
  const std::int64_t d = heads[0].channels(), r = heads[0].rank();
  check::in_range("heads[0].rank", r, 1, d);
  for (std::size_t h = 0; h < heads.size(); ++h) {
    const std::string name = "heads[" + std::to_string(h) + "]";
    check::equal(name + ".right.rows", heads[h].right.rows(), d, "as heads[0]");
    check::equal(name + ".right.cols", heads[h].right.cols(), r, "as heads[0]");
    check::equal(name + ".left.cols", heads[h].left.cols(), r, "right.cols");
    check::at_least(name + ".left.rows", heads[h].left.rows(), 1);
  }
}

/// Throws where a head holds Inf or NaN. Reads all of it: once, by whoever computes with it.
template <class S>
void check_finite(const HeadFactors<S>& head, std::size_t index) {
  const auto check = [&](const auto& values, const char* part) {
    if (!linalg::all_finite(values))
      throw Error("heads[" + std::to_string(index) + "]." + part, "finite values", "Inf or NaN");
  };
  check(head.left, "left");
  check(head.right, "right");
}

}  // namespace bda::inline v0

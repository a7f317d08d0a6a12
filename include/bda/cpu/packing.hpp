#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <span>

#include "bda/core/dtype.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cpu/microkernel.hpp"
#include "bda/linalg/scalar.hpp"

/// Rearranging operands into the order the register blocks read them in.
namespace bda::inline v0::cpu {

/// to[i] = from[i] in the compute type; exact where S is the narrower one.
template <class C, class S>
void convert(const S* from, C* to, std::int64_t count) {
  Eigen::Map<Eigen::Array<C, Eigen::Dynamic, 1>>(to, count) =
      Eigen::Map<const Eigen::Array<S, Eigen::Dynamic, 1>>(from, count).template cast<C>();
}

/// Rows `[first, last)` of block `index` of `blocks` that share `total` as evenly as possible.
struct Share {
  std::int64_t first, last;
  Share(std::int64_t total, std::int64_t blocks, std::int64_t index)
      : first(total * index / blocks), last(total * (index + 1) / blocks) {}
  [[nodiscard]] std::int64_t size() const { return last - first; }
};

[[nodiscard]] constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// The rows of a [batch, tokens, width] view, numbered through.
template <class T>
class RowCursor {
 public:
  RowCursor(const TensorView<T, 3>& view, std::int64_t row)
      : view_(view), b_(row / view.extent(1)), t_(row % view.extent(1)) {}
  [[nodiscard]] T* data() const { return view_.data + b_ * view_.stride(0) + t_ * view_.stride(1); }
  void next() {
    if (++t_ == view_.extent(1)) t_ = 0, ++b_;
  }

 private:
  const TensorView<T, 3>& view_;
  std::int64_t b_, t_;
};

/// to [depth, rows] = transpose of the chosen channels of `rows` rows of a, beginning at `row`.
/// `channels` is empty for the contiguous ones beginning at `first_channel`.
template <class C>
void pack_activations(const TensorView<const C, 3>& a, std::int64_t row, std::int64_t rows,
                      std::span<const std::int64_t> channels, std::int64_t first_channel,
                      std::int64_t depth, C* to) {
  RowCursor<const C> cursor(a, row);
  for (std::int64_t i = 0; i < rows; ++i, cursor.next()) {
    const C* from = cursor.data();
    if (channels.empty()) {
      from += first_channel;
      for (std::int64_t k = 0; k < depth; ++k) to[k * rows + i] = from[k];
    } else {
      const std::int64_t* chosen = channels.data() + first_channel;
      for (std::int64_t k = 0; k < depth; ++k) to[k * rows + i] = from[chosen[k]];
    }
  }
}

/// to [panels, depth, kCols] = `cols` columns of w [depth, cols], widened, in panels of kCols; the
/// last panel is filled up with zeros.
template <class C, class S>
void pack_weights(const S* w, std::int64_t stride, std::int64_t depth, std::int64_t cols, C* to) {
  constexpr std::int64_t kCols = TileShape<C>::kCols;
  const std::int64_t whole = cols / kCols, left = cols % kCols;
  using From = Eigen::Map<const Eigen::Array<S, kCols, 1>>;
  using To = Eigen::Map<Eigen::Array<C, kCols, 1>>;
  for (std::int64_t k = 0; k < depth; ++k, w += stride, to += kCols) {
    for (std::int64_t p = 0; p < whole; ++p)
      To(to + p * depth * kCols) = From(w + p * kCols).template cast<C>();
    if (left > 0) {
      C* last = to + whole * depth * kCols;
      convert(w + whole * kCols, last, left);
      std::fill(last + left, last + kCols, C(0));
    }
  }
}

}  // namespace bda::inline v0::cpu

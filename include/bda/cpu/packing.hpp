#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include "bda/core/dtype.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/linalg/microkernel.hpp"
#include "bda/linalg/scalar.hpp"

/// Rearranging operands into the order the register blocks read them in.
namespace bda::inline v0::cpu {

using linalg::ceil_div;
using linalg::convert;
using linalg::Share;
using linalg::TileShape;

/// `from` itself where it is in the compute type, else its values converted into `memory`.
template <class C, class S>
const C* widened(const S* from, C* memory, std::int64_t count) {
  if constexpr (std::is_same_v<S, C>) {
    return from;
  } else {
    convert(from, memory, count);
    return memory;
  }
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
  for (std::int64_t k = 0; k < depth; ++k, w += stride, to += kCols) {
    for (std::int64_t p = 0; p < whole; ++p) convert(w + p * kCols, to + p * depth * kCols, kCols);
    if (left > 0) {
      C* last = to + whole * depth * kCols;
      convert(w + whole * kCols, last, left);
      std::fill(last + left, last + kCols, C(0));
    }
  }
}

}  // namespace bda::inline v0::cpu

#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "bda/linalg/eigen.hpp"
#include "bda/linalg/microkernel.hpp"

/// Products of large matrices on the library's own register blocks. Where a product is only a
/// hundred columns wide, as most of a decomposition's are, half of Eigen's time goes into turning
/// the left factor round; here its rows are only copied together.
namespace bda::inline v0::linalg {

/// A row-major matrix or a block of one, as every operand here is passed on.
template <class S>
using View = Eigen::Map<
    std::conditional_t<std::is_const_v<S>, const RowMatrix<std::remove_const_t<S>>, RowMatrix<S>>,
    Eigen::Unaligned, Eigen::OuterStride<>>;

namespace detail {

/// Whether a factor is taken as it is or transposed.
enum class Form { kPlain, kTransposed };

/// What is done at once.
template <class S>
struct ProductBlocking {
  static constexpr std::int64_t kDepth = 256;
  static constexpr std::int64_t kCols = 256;
  // rows of a packed left factor, not a whole number of pages apart
  static constexpr int kRowStride = kDepth + 16;
};

/// to [panels, depth, kCols] = rows [depth0, depth0 + depth) and columns [col0, col0 + cols) of the
/// right factor times `scale`; the last panel is filled up with zeros.
template <class S, Form form>
void pack_right(const View<const S>& b, std::int64_t depth0, std::int64_t depth, std::int64_t col0,
                std::int64_t cols, S scale, S* to) {
  constexpr int kCols = TileShape<S>::kCols;
  const std::int64_t stride = b.outerStride();
  for (std::int64_t j = 0; j < cols; j += kCols, to += depth * kCols) {
    const std::int64_t count = std::min<std::int64_t>(kCols, cols - j);
    if constexpr (form == Form::kPlain) {
      const S* from = b.data() + depth0 * stride + col0 + j;
      if (count == kCols) {
        for (std::int64_t k = 0; k < depth; ++k)
          for (int i = 0; i < kCols; ++i) to[k * kCols + i] = from[k * stride + i];
      } else {
        for (std::int64_t k = 0; k < depth; ++k)
          std::fill(std::copy_n(from + k * stride, count, to + k * kCols), to + (k + 1) * kCols,
                    S(0));
      }
    } else {
      const S* from = b.data() + (col0 + j) * stride + depth0;
      for (std::int64_t k = 0; k < depth; ++k) {
        S* const row = to + k * kCols;
        for (std::int64_t i = 0; i < count; ++i) row[i] = from[i * stride + k];
        std::fill(row + count, row + kCols, S(0));
      }
    }
    if (scale != S(1))
      for (std::int64_t i = 0; i < depth * kCols; ++i) to[i] *= scale;
  }
}

/// to [rows, kRowStride] = a block of a.
template <class S>
void copy_rows(const View<const S>& a, std::int64_t row0, std::int64_t rows, std::int64_t depth0,
               std::int64_t depth, S* to) {
  for (std::int64_t i = 0; i < rows; ++i)
    std::copy_n(a.data() + (row0 + i) * a.outerStride() + depth0, depth,
                to + i * ProductBlocking<S>::kRowStride);
}

/// One register block of a product: `count` columns, of which there may be fewer than kCols.
template <class S, class Left>
void add_tile(std::int64_t rows, std::int64_t depth, Left a, TileRows<const S> b,
              std::int64_t count, TileRows<const S> from, TileRows<S> to) {
  constexpr int kCols = TileShape<S>::kCols;
  if (count >= kCols) return multiply_tile<S, Left>(rows, depth, a, b, from, to);
  alignas(64) S tile[TileShape<S>::kRows * kCols];
  multiply_tile<S, Left>(rows, depth, a, b, {nullptr, 0}, {tile, kCols});
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < count; ++j) {
      const S sum = tile[i * kCols + j];
      to.data[i * to.stride + j] =
          from.data != nullptr ? from.data[i * from.stride + j] + sum : sum;
    }
}

/// out [m, n] = scale op(A) op(B), or += with `add`. None of the extents is zero.
template <Form a_form, Form b_form, class S>
void blocked_product(View<S> out, const View<const S>& a, const View<const S>& b, S scale,
                     bool add) {
  using Blocks = ProductBlocking<S>;
  constexpr int kRows = TileShape<S>::kRows, kCols = TileShape<S>::kCols;
  const std::int64_t m = out.rows(), n = out.cols(), stride = out.outerStride();
  const std::int64_t total = a_form == Form::kPlain ? a.cols() : a.rows();
  const std::int64_t depth_blocks = ceil_div(total, Blocks::kDepth), slivers = ceil_div(m, kRows);
  Eigen::Matrix<S, Eigen::Dynamic, 1> packed(ceil_div(total, depth_blocks) *
                                             ceil_div(std::min(n, Blocks::kCols), kCols) * kCols);
  alignas(64) S copied[kRows * Blocks::kRowStride];
  for (std::int64_t first = 0; first < n; first += Blocks::kCols) {
    const std::int64_t last = std::min(first + Blocks::kCols, n);
    for (std::int64_t d = 0; d < depth_blocks; ++d) {
      const Share depth(total, depth_blocks, d);
      pack_right<S, b_form>(b, depth.first, depth.size(), first, last - first, scale,
                            packed.data());
      for (std::int64_t s = 0; s < slivers; ++s) {
        const Share rows(m, slivers, s);
        const auto add_tiles = [&](auto left) {
          for (std::int64_t j = first; j < last; j += kCols) {
            const TileRows<S> to{&out(rows.first, j), stride};
            const TileRows<const S> from{add || d > 0 ? to.data : nullptr, stride};
            add_tile<S>(rows.size(), depth.size(), left,
                        {packed.data() + (j - first) * depth.size(), kCols}, last - j, from, to);
          }
        };
        if constexpr (a_form == Form::kPlain) {
          copy_rows(a, rows.first, rows.size(), depth.first, depth.size(), copied);
          add_tiles(ByRow<S, Blocks::kRowStride>{copied});
        } else {
          add_tiles(
              ByDepth<S>{a.data() + depth.first * a.outerStride() + rows.first, a.outerStride()});
        }
      }
    }
  }
}

/// The register blocks of out += AᵀA that reach the diagonal or lie below it. Both factors are read
/// where they are, which is fastest where the rows of A are not a power of two apart.
template <class S>
void add_gram(View<S> out, const View<const S>& a) {
  constexpr std::int64_t kDepth = 128;  // rows of A that the first level of cache holds a panel of
  constexpr int kCols = TileShape<S>::kCols;
  const std::int64_t n = a.cols(), slivers = ceil_div(n, TileShape<S>::kRows);
  alignas(64) S packed[kDepth * kCols];  // the last panel, where it is narrower
  for (std::int64_t first = 0; first < a.rows(); first += kDepth) {
    const std::int64_t depth = std::min(kDepth, a.rows() - first), whole = n / kCols * kCols;
    const S* const block = a.data() + first * a.outerStride();
    if (whole < n) pack_right<S, Form::kPlain>(a, first, depth, whole, n - whole, S(1), packed);
    for (std::int64_t s = 0; s < slivers; ++s) {
      const Share rows(n, slivers, s);
      const ByDepth<S> left{block + rows.first, a.outerStride()};
      for (std::int64_t j = 0; j < rows.last; j += kCols) {
        const TileRows<S> to{&out(rows.first, j), out.outerStride()};
        const TileRows<const S> right = j < whole ? TileRows<const S>{block + j, a.outerStride()}
                                                  : TileRows<const S>{packed, kCols};
        add_tile<S>(rows.size(), depth, left, right, n - j, {to.data, to.stride}, to);
      }
    }
  }
}

}  // namespace detail
}  // namespace bda::inline v0::linalg

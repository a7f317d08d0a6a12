#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "bda/core/tensor_view.hpp"
#include "bda/cpu/packing.hpp"
#include "bda/cpu/workers.hpp"
#include "bda/cpu/workspace.hpp"
#include "bda/linalg/microkernel.hpp"

/// The product of activations and stored weights that everything in a layer goes through.
namespace bda::inline v0::cpu {

using linalg::multiply_tile;
using linalg::TileRows;

/// out[b, t, h, :] = identity[b, t, :] + bias[h, :] + a[b, t, channels] w[:, h, :].
///
/// Products and sums are in C, whatever S is. Every element is summed in the same order however
/// many threads there are. Views need unit stride in their last dimension.
template <class C, class S>
struct Product {
  TensorView<const C, 3> a;                // [batch, tokens, *]
  std::span<const std::int64_t> channels;  // [depth] those of a's that meet w; empty: the first
  MatrixView<const S> w;                   // [depth, heads * width]
  const C* bias = nullptr;                 // [heads * width], or null
  TensorView<const C, 3> identity;         // [batch, tokens, width], or null data
  TensorView<C, 4> out;                    // [batch, tokens, heads, width]

  [[nodiscard]] std::int64_t rows() const { return out.extent(0) * out.extent(1); }
  [[nodiscard]] std::int64_t depth() const { return w.extent(0); }
  [[nodiscard]] std::int64_t cols() const { return out.extent(2) * out.extent(3); }
};

namespace detail {

/// What is done at once.
struct Blocking {
  // A block of packed weights: 512 KiB of float, which a second-level cache holds.
  static constexpr std::int64_t kMaxDepth = 512;
  static constexpr std::int64_t kMaxCols = 256;
  static constexpr std::int64_t kMaxRows = 1024;  // of activations, that share its packing
  static constexpr std::int64_t kStreamRows = 6;  // up to here weights are read once, unpacked
  static constexpr std::int64_t kStreamCols = 1024;
  // rows of sums, not a whole page apart: loads would wait for stores that only look the same
  static constexpr std::int64_t kStreamStride = kStreamCols + 16;
  static constexpr std::int64_t kStreamDepth = 4;  // rows of weights for each pass over the sums
};

/// The runs of columns [first, last) that lie within one head each.
template <class Visit>
void for_each_head_run(std::int64_t first, std::int64_t last, std::int64_t width,
                       const Visit& visit) {
  for (std::int64_t j = first; j < last;) {
    const std::int64_t head = j / width, channel = j % width;
    const std::int64_t count = std::min(width - channel, last - j);
    visit(head, channel, j - first, count);
    j += count;
  }
}

/// tile [rows, stride] = what the product is added to, or (later blocks of depth) the sum so far.
template <class C, class S>
void load_tile(const Product<C, S>& p, std::int64_t row, std::int64_t rows, std::int64_t first,
               std::int64_t last, bool begin, C* tile, std::int64_t stride) {
  const std::int64_t tokens = p.out.extent(1), width = p.out.extent(3);
  for_each_head_run(first, last, width,
                    [&](std::int64_t h, std::int64_t channel, std::int64_t at, std::int64_t count) {
                      std::int64_t b = row / tokens, t = row % tokens;
                      for (std::int64_t i = 0; i < rows; ++i) {
                        C* to = tile + i * stride + at;
                        if (!begin) {
                          std::copy_n(&p.out(b, t, h, channel), count, to);
                        } else {
                          if (p.identity.data != nullptr)
                            std::copy_n(&p.identity(b, t, channel), count, to);
                          else
                            std::fill_n(to, count, C(0));
                          if (p.bias != nullptr) {
                            const C* bias = p.bias + h * width + channel;
                            for (std::int64_t j = 0; j < count; ++j) to[j] += bias[j];
                          }
                        }
                        if (++t == tokens) t = 0, ++b;
                      }
                    });
}

template <class C, class S>
void store_tile(const Product<C, S>& p, std::int64_t row, std::int64_t rows, std::int64_t first,
                std::int64_t last, const C* tile, std::int64_t stride) {
  const std::int64_t tokens = p.out.extent(1), width = p.out.extent(3);
  for_each_head_run(first, last, width,
                    [&](std::int64_t h, std::int64_t channel, std::int64_t at, std::int64_t count) {
                      std::int64_t b = row / tokens, t = row % tokens;
                      for (std::int64_t i = 0; i < rows; ++i) {
                        std::copy_n(tile + i * stride + at, count, &p.out(b, t, h, channel));
                        if (++t == tokens) t = 0, ++b;
                      }
                    });
}

/// A few rows: bound by reading the weights, so each is read once, in storage order.
/// `scratch` holds kStreamDepth rows of widened weights, then the sums.
template <class C, class S>
void stream_columns(const Product<C, S>& p, std::int64_t first, std::int64_t last, C* scratch) {
  using Line = Eigen::Array<C, Eigen::Dynamic, 1>;
  constexpr std::int64_t kStride = Blocking::kStreamStride, kDepth = Blocking::kStreamDepth;
  const std::int64_t count = last - first;
  C* const sums = scratch + kDepth * kStride;
  load_tile(p, 0, p.rows(), first, last, true, sums, kStride);
  for (std::int64_t k = 0; k < p.depth(); k += kDepth) {
    const std::int64_t lines = std::min(kDepth, p.depth() - k);
    const C* w[kDepth] = {};
    std::int64_t channel[kDepth] = {};
    for (std::int64_t i = 0; i < lines; ++i) {
      w[i] = widened(&p.w(k + i, first), scratch + i * kStride, count);
      channel[i] = p.channels.empty() ? k + i : p.channels[static_cast<std::size_t>(k + i)];
    }
    RowCursor<const C> a(p.a, 0);
    for (std::int64_t row = 0; row < p.rows(); ++row, a.next()) {
      Eigen::Map<Line> sum(sums + row * kStride, count);
      const auto term = [&](std::int64_t i) {
        return a.data()[channel[i]] * Eigen::Map<const Line>(w[i], count);
      };
      if (lines == kDepth)
        sum += (term(0) + term(1)) + (term(2) + term(3));
      else
        for (std::int64_t i = 0; i < lines; ++i) sum += term(i);
    }
  }
  store_tile(p, 0, p.rows(), first, last, sums, kStride);
}

/// One register block: rows [row, row + rows) and columns [first, last), at most kCols of them.
template <class C, class S>
void multiply_tile_of(const Product<C, S>& p, std::int64_t row, std::int64_t rows,
                      std::int64_t first, std::int64_t last, bool begin, std::int64_t depth,
                      const C* packed_a, const C* packed_b) {
  constexpr std::int64_t kCols = TileShape<C>::kCols;
  const linalg::ByDepth<C> a{packed_a, rows};
  const TileRows<const C> b{packed_b, kCols};
  alignas(Arena::kAlignment) C tile[TileShape<C>::kRows * kCols];
  const std::int64_t tokens = p.out.extent(1), width = p.out.extent(3);
  const std::int64_t sequence = row / tokens, token = row % tokens;
  const std::int64_t head = first / width, channel = first % width;
  const bool regular = token + rows <= tokens && channel + kCols <= width && last - first == kCols;
  if (!regular) {
    load_tile(p, row, rows, first, last, begin, tile, kCols);
    multiply_tile<C>(rows, depth, a, b, {tile, kCols}, {tile, kCols});
    store_tile(p, row, rows, first, last, tile, kCols);
    return;
  }
  const TileRows<C> to{&p.out(sequence, token, head, channel), p.out.stride(1)};
  TileRows<const C> from{to.data, to.stride};
  if (begin) {
    if (p.identity.data != nullptr && p.bias == nullptr) {
      from = {&p.identity(sequence, token, channel), p.identity.stride(1)};
    } else {
      load_tile(p, row, rows, first, last, true, tile, kCols);
      from = {tile, kCols};
    }
  }
  multiply_tile<C>(rows, depth, a, b, from, to);
}

/// A block of columns for rows [row, row + rows), whose activations `packed` holds.
///
/// A sliver of rows stays in the first-level cache while the weights pass by from the second, so
/// that each row of the output is written from left to right.
template <class C, class S>
void multiply_block(const Product<C, S>& p, std::int64_t row, std::int64_t rows, std::int64_t first,
                    std::int64_t last, const C* packed, C* weights) {
  constexpr std::int64_t kCols = TileShape<C>::kCols;
  const std::int64_t depth_blocks =
      std::max<std::int64_t>(ceil_div(p.depth(), Blocking::kMaxDepth), 1);
  const std::int64_t slivers = ceil_div(rows, TileShape<C>::kRows);
  for (std::int64_t d = 0; d < depth_blocks; ++d) {
    const Share depth(p.depth(), depth_blocks, d);
    if (depth.size() > 0)
      pack_weights(&p.w(depth.first, first), p.w.stride(0), depth.size(), last - first, weights);
    for (std::int64_t s = 0; s < slivers; ++s) {
      const Share sliver(rows, slivers, s);
      for (std::int64_t j = first; j < last; j += kCols)
        multiply_tile_of(p, row + sliver.first, sliver.size(), j, std::min(j + kCols, last), d == 0,
                         depth.size(), packed + rows * depth.first + sliver.first * depth.size(),
                         weights + (j - first) * depth.size());
    }
  }
}

/// packed = rows [row, row + rows) in the order `multiply_block` reads them: by block of depth,
/// then by sliver.
template <class C, class S>
void pack_rows(const Product<C, S>& p, std::int64_t row, std::int64_t rows, C* packed,
               int threads) {
  const std::int64_t depth_blocks = ceil_div(p.depth(), Blocking::kMaxDepth);
  const std::int64_t slivers = ceil_div(rows, TileShape<C>::kRows);
  parallel_for(slivers, threads, [&](std::int64_t s) {
    const Share sliver(rows, slivers, s);
    for (std::int64_t d = 0; d < depth_blocks; ++d) {
      const Share depth(p.depth(), depth_blocks, d);
      pack_activations(p.a, row + sliver.first, sliver.size(), p.channels, depth.first,
                       depth.size(), packed + rows * depth.first + sliver.first * depth.size());
    }
  });
}

struct ProductScratch {
  template <class C>
  static ProductScratch sized(std::int64_t rows, std::int64_t depth, std::int64_t cols) {
    constexpr std::int64_t kCols = TileShape<C>::kCols;
    ProductScratch s;
    if (rows <= Blocking::kStreamRows) {
      s.worker = (rows + Blocking::kStreamDepth) * Blocking::kStreamStride;
      return s;
    }
    s.packed = std::min(rows, Blocking::kMaxRows) * depth;
    s.worker = std::min(depth, Blocking::kMaxDepth) *
               (ceil_div(std::min(cols, Blocking::kMaxCols), kCols) * kCols);
    const std::int64_t line = static_cast<std::int64_t>(Arena::kAlignment / sizeof(C));
    s.worker = ceil_div(s.worker, line) * line;
    return s;
  }
  std::int64_t packed = 0;  // values of C, shared
  std::int64_t worker = 0;  // values of C, each worker
};

}  // namespace detail

/// Takes from `arena` what `multiply` needs for these extents.
template <class C>
C* take_product_scratch(Arena& arena, std::int64_t rows, std::int64_t depth, std::int64_t cols,
                        int threads) {
  const auto s = detail::ProductScratch::sized<C>(rows, depth, cols);
  const std::int64_t line = static_cast<std::int64_t>(Arena::kAlignment / sizeof(C));
  return arena.take<C>(ceil_div(s.packed, line) * line + s.worker * std::max(threads, 1));
}

/// `scratch` as `take_product_scratch` gives it, for the same extents or larger ones.
template <class C, class S>
void multiply(const Product<C, S>& p, C* scratch, int threads) {
  using detail::Blocking;
  const std::int64_t rows = p.rows(), cols = p.cols();
  if (rows == 0 || cols == 0) return;
  threads = worthwhile_threads(rows * p.depth() * cols, threads);
  const auto sizes = detail::ProductScratch::sized<C>(rows, p.depth(), cols);
  const std::int64_t line = static_cast<std::int64_t>(Arena::kAlignment / sizeof(C));
  C* const workers = scratch + ceil_div(sizes.packed, line) * line;

  if (rows <= Blocking::kStreamRows) {
    parallel_for_workers(ceil_div(cols, Blocking::kStreamCols), threads,
                         [&](std::int64_t worker, std::int64_t block) {
                           const std::int64_t first = block * Blocking::kStreamCols;
                           detail::stream_columns(p, first,
                                                  std::min(first + Blocking::kStreamCols, cols),
                                                  workers + worker * sizes.worker);
                         });
    return;
  }
  const std::int64_t row_blocks = ceil_div(rows, Blocking::kMaxRows);
  for (std::int64_t r = 0; r < row_blocks; ++r) {
    const Share outer(rows, row_blocks, r);
    detail::pack_rows(p, outer.first, outer.size(), scratch, threads);
    parallel_for_workers(ceil_div(cols, Blocking::kMaxCols), threads,
                         [&](std::int64_t worker, std::int64_t block) {
                           const std::int64_t first = block * Blocking::kMaxCols;
                           detail::multiply_block(p, outer.first, outer.size(), first,
                                                  std::min(first + Blocking::kMaxCols, cols),
                                                  scratch, workers + worker * sizes.worker);
                         });
  }
}

}  // namespace bda::inline v0::cpu

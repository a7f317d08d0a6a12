#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "bda/core/matrix.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/linalg/scalar.hpp"

/// Eigen maps of the library's plain matrices and views.
namespace bda::inline v0::linalg {

/// Row-major, like every matrix the library stores.
template <class S>
using RowMatrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T>
auto map(Matrix<T>& m) {
  return Eigen::Map<RowMatrix<T>>(m.data(), m.rows, m.cols);
}

template <class T>
auto map(const Matrix<T>& m) {
  return Eigen::Map<const RowMatrix<T>>(m.data(), m.rows, m.cols);
}

/// For a view with unit column stride.
template <class T>
auto map(const MatrixView<T>& v) {
  using Plain = RowMatrix<std::remove_const_t<T>>;
  using Mapped = std::conditional_t<std::is_const_v<T>, const Plain, Plain>;
  return Eigen::Map<Mapped, Eigen::Unaligned, Eigen::OuterStride<>>(
      v.data, v.extent(0), v.extent(1), Eigen::OuterStride<>(v.stride(0)));
}

/// True where no entry is Inf or NaN: zero times each of them is NaN. (Eigen's allFinite() is not
/// vectorised.)
template <class Derived>
bool all_finite(const Eigen::DenseBase<Derived>& values) {
  using S = typename Derived::Scalar;
  return values.size() == 0 || (values.derived().array() * S(0)).sum() == S(0);
}

/// to[i] = from[i], finite, to nearest.
template <class S, class T>
void convert_finite(const S* from, T* to, Eigen::Index count) {
  if constexpr (sizeof(T) >= sizeof(S))
    convert(from, to, count);
  else
    for (Eigen::Index i = 0; i < count; ++i) to[i] = nearest<T>(from[i]);
}

/// out = m, which is finite, to nearest.
template <class Out, class M>
void assign_converted(Out&& out, const M& m) {
  for (Eigen::Index i = 0; i < m.rows(); ++i)
    convert_finite(m.data() + i * m.outerStride(), out.data() + i * out.outerStride(), m.cols());
}

/// out = mᵀ of a finite m, to nearest. By tiles: whole rows of one are columns of the other, which
/// the cache would not hold. The tiles follow the longer rows, as what fetches memory ahead does.
template <class Out, class M>
void assign_transposed(Out&& out, const M& m) {
  using T = typename std::decay_t<Out>::Scalar;
  constexpr Eigen::Index kTile = 32;  // 16-bit values make a line of the cache
  alignas(64) T tile[kTile][kTile];
  const auto assign_tile = [&](Eigen::Index i0, Eigen::Index j0) {
    const Eigen::Index rows = std::min(kTile, out.rows() - i0);
    const Eigen::Index cols = std::min(kTile, out.cols() - j0);
    const auto* from = m.data() + j0 * m.outerStride() + i0;
    T* to = out.data() + i0 * out.outerStride() + j0;
    const auto transpose = [&](auto height, auto width) {  // constants where the tile is whole
      for (Eigen::Index j = 0; j < width; ++j)
        convert_finite(from + j * m.outerStride(), tile[j], height);
      for (Eigen::Index i = 0; i < height; ++i)
        for (Eigen::Index j = 0; j < width; ++j) to[i * out.outerStride() + j] = tile[j][i];
    };
    using Whole = std::integral_constant<Eigen::Index, kTile>;
    if (rows == kTile && cols == kTile)
      transpose(Whole{}, Whole{});
    else
      transpose(rows, cols);
  };
  if (out.cols() >= out.rows())
    for (Eigen::Index i0 = 0; i0 < out.rows(); i0 += kTile)
      for (Eigen::Index j0 = 0; j0 < out.cols(); j0 += kTile) assign_tile(i0, j0);
  else
    for (Eigen::Index j0 = 0; j0 < out.cols(); j0 += kTile)
      for (Eigen::Index i0 = 0; i0 < out.rows(); i0 += kTile) assign_tile(i0, j0);
}

/// The rows of `m` that `order` names, in its order.
template <class S>
RowMatrix<S> gather_rows(const RowMatrix<S>& m, const std::vector<std::int64_t>& order) {
  RowMatrix<S> gathered(static_cast<Eigen::Index>(order.size()), m.cols());
  for (std::size_t i = 0; i < order.size(); ++i)
    gathered.row(static_cast<Eigen::Index>(i)) = m.row(order[i]);
  return gathered;
}

}  // namespace bda::inline v0::linalg

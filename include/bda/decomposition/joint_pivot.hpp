#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/head_span.hpp"

namespace bda::inline v0 {

namespace detail {

/// The steps of JointPivot. (Real is double: a template is compiled only where it is used.)
template <class Real>
struct PivotSearch {
  using Matrix = linalg::RowMatrix<Real>;
  using Vector = Eigen::Matrix<Real, Eigen::Dynamic, 1>;

  struct Head {
    Matrix rows;        // [d, r]; U, then U in the coordinates of the pivots, then U U[S]⁻¹
    Matrix directions;  // [r, r]; row k: what the k-th pivot added to the span, orthonormal
    Vector residual;    // [d]; squared distance of each row of U from the pivots' span
    Vector energy;      // [d]; |B_j|² / |W|_F²

    explicit Head(HeadSpan head)
        : rows(std::move(head.span)),
          directions(Matrix::Zero(rows.cols(), rows.cols())),
          residual(rows.rowwise().squaredNorm()),
          energy(basis_energy(rows, head.weight)) {}
  };

  /// Residuals come by subtraction from at most 1, so below this they are rounding.
  static constexpr double kDependent = 1e-14;

  /// Returns the chosen channels in the order of choice and leaves U U[S]⁻¹ in `rows`.
  static std::vector<std::int64_t> pivot(std::vector<Head>& heads, int threads) {
    const auto count = static_cast<std::int64_t>(heads.size());
    const Eigen::Index d = heads[0].rows.rows(), r = heads[0].rows.cols();
    std::vector<std::int64_t> channels;
    Matrix gain(count, d);  // log of the squared factor by which a channel enlarges the volume
    for (Eigen::Index k = 0; k < r; ++k) {
      parallel_for(count, threads, [&](std::int64_t h) {
        Head& head = heads[static_cast<std::size_t>(h)];
        if (k > 0) deflate(head, channels.back(), k - 1);
        gain.row(h) = head.residual.array().max(kDependent).log().transpose();
      });
      Vector total = gain.colwise().sum().transpose();
      for (std::int64_t channel : channels)
        total(channel) = -std::numeric_limits<double>::infinity();
      Eigen::Index best = 0;
      total.maxCoeff(&best);
      for (std::size_t h = 0; h < heads.size(); ++h)
        if (heads[h].residual(best) <= kDependent)
          throw Error("heads[" + std::to_string(h) + "].right",
                      std::to_string(r) + " channels that are independent in every head",
                      "only " + std::to_string(k) + " by joint pivoting");
      channels.push_back(best);
    }
    parallel_for(count, threads, [&](std::int64_t h) {
      Head& head = heads[static_cast<std::size_t>(h)];
      deflate(head, channels.back(), r - 1);
      // In the coordinates of the directions U[S] is lower triangular.
      head.rows = linalg::multiply_transposed(head.rows, head.directions);
      const Matrix basis = linalg::gather_rows(head.rows, channels);
      linalg::divide_by_triangle<linalg::Triangle::kLower>(head.rows, basis);
    });
    return channels;
  }

  /// Makes `channel` pivot k of one head.
  static void deflate(Head& head, std::int64_t channel, Eigen::Index k) {
    Matrix direction = head.rows.row(channel);
    const auto known = head.directions.topRows(k);
    for (int pass = 0; pass < 2; ++pass)  // twice is enough for orthogonality to rounding
      linalg::add_product(direction, linalg::multiply_transposed(direction, known), known, -1.0);
    direction.normalize();
    head.directions.row(k) = direction;
    head.residual -= linalg::multiply_transposed(head.rows, direction).cwiseAbs2();
  }

  /// Improves the channels that `pivot` has left.
  static void exchange(std::vector<Head>& heads, std::vector<std::int64_t>& channels,
                       double minimal_gain, int threads) {
    const auto count = static_cast<std::int64_t>(heads.size());
    const Eigen::Index d = heads[0].rows.rows(), r = heads[0].rows.cols();
    std::vector<Matrix> grams(heads.size());  // [r, r]; diagonal: 1 + |C_i|²
    Matrix change(d, r);  // of sum alpha² if channel j takes the place of basis position i
    for (Eigen::Index swaps = 0; swaps < r; ++swaps) {
      parallel_for(count, threads, [&](std::int64_t h) {
        const auto i = static_cast<std::size_t>(h);
        grams[i] = linalg::gram<double>(heads[i].rows);
      });
      double total = 0;
      for (std::size_t h = 0; h < heads.size(); ++h)
        for (Eigen::Index i = 0; i < r; ++i)
          total += heads[h].energy[channels[static_cast<std::size_t>(i)]] * grams[h](i, i);

      constexpr Eigen::Index kBlock = 64;  // channels; heads are summed in order within each
      parallel_for((d + kBlock - 1) / kBlock, threads, [&](std::int64_t b) {
        const Eigen::Index first = b * kBlock, size = std::min(kBlock, d - first);
        change.middleRows(first, size).setZero();
        for (std::size_t h = 0; h < heads.size(); ++h)
          add_changes(heads[h], grams[h], channels, first, size, change);
      });
      Eigen::Index channel = 0, position = 0;
      if (!(-change.minCoeff(&channel, &position) >= minimal_gain * total)) return;

      parallel_for(count, threads, [&](std::int64_t h) {
        Matrix& rows = heads[static_cast<std::size_t>(h)].rows;
        Eigen::RowVectorXd update = rows.row(channel) / rows(channel, position);
        update(position) -= 1 / rows(channel, position);
        for (Eigen::Index j = 0; j < d; ++j) {
          const double factor = rows(j, position);
          rows.row(j) -= factor * update;
        }
      });
      channels[static_cast<std::size_t>(position)] = channel;
    }
  }

  /// Adds to `change` [d, r], rows [first, first + size), how alpha² of one head changes.
  ///
  /// With E = U U[S]⁻¹, G = EᵀE, a = energy[S] and p = E_ji, the rank-one update of E gives
  /// G_ii (energy_j + sum_k a_k E_jk²) / p² - 2 (E diag(a) G)_ji / p.
  static void add_changes(const Head& head, const Matrix& gram,
                          const std::vector<std::int64_t>& channels, Eigen::Index first,
                          Eigen::Index size, Matrix& change) {
    constexpr double kSmallestPivot = 1e-6;  // below it the update would lose half the digits
    const Eigen::Index r = gram.rows();
    Matrix scaled = head.rows.middleRows(first, size);
    for (Eigen::Index i = 0; i < r; ++i)
      scaled.col(i) *= head.energy[channels[static_cast<std::size_t>(i)]];
    const Matrix cross = linalg::multiply(scaled, gram);
    for (Eigen::Index j = 0; j < size; ++j) {
      const auto row = head.rows.row(first + j);
      const double own = head.energy[first + j] + scaled.row(j).dot(row);
      for (Eigen::Index i = 0; i < r; ++i)
        change(first + j, i) += std::abs(row[i]) < kSmallestPivot
                                    ? std::numeric_limits<double>::infinity()
                                    : (own * gram(i, i) / row[i] - 2 * cross(j, i)) / row[i];
    }
  }
};

}  // namespace detail

/// One index set for all heads by pivoting on all of them at once, for attention whose channels
/// can be permuted.
///
/// First greedily: the next channel is the one that enlarges the product over heads of the volumes
/// of the chosen rows most. Then by exchanges: while swapping one basis channel for another lowers
/// the sum over heads of alpha² (noise.hpp) by at least `minimal_gain` of it, the best such swap is
/// made. A few of them cut the tail that the volumes leave.
struct JointPivot {
  static constexpr std::string_view name = "joint_pivot";

  double minimal_gain = 1e-3;

  /// Throws Error on invalid heads, a rank-deficient head, or where pivoting runs out of channels
  /// that are independent in every head (as when two heads read disjoint channels).
  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions& options) const {
    using Search = detail::PivotSearch<double>;
    std::vector<Search::Head> state;
    for (HeadSpan& head : head_spans(heads, options.threads)) state.emplace_back(std::move(head));
    std::vector<std::int64_t> channels = Search::pivot(state, options.threads);
    Search::exchange(state, channels, minimal_gain, options.threads);
    return {IndexSet(heads[0].channels(), std::move(channels)), {}};
  }
};

}  // namespace bda::inline v0

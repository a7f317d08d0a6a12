#pragma once

#include <algorithm>
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
    std::vector<Head> state;
    for (HeadSpan& head : head_spans(heads, options.threads)) state.emplace_back(std::move(head));
    std::vector<std::int64_t> channels = pivot(state, options.threads);
    exchange(state, channels, options.threads);
    return {IndexSet(heads[0].channels(), std::move(channels)), {}};
  }

 private:
  using Matrix = Eigen::MatrixXd;
  using Vector = Eigen::VectorXd;

  struct Head {
    Matrix rows;        // [d, r]; U, then U in the coordinates of the pivots, then U U[S]⁻¹
    Matrix directions;  // [r, r]; column k: what the k-th pivot added to the span, orthonormal
    Vector residual;    // [d]; squared distance of each row of U from the pivots' span
    Vector energy;      // [d]; |B_j|² / |W|_F²

    explicit Head(HeadSpan head)
        : rows(std::move(head.span)),
          directions(Matrix::Zero(rows.cols(), rows.cols())),
          residual(rows.rowwise().squaredNorm()),
          energy((rows * head.weight).rowwise().squaredNorm()) {}
  };

  /// Residuals come by subtraction from at most 1, so below this they are rounding.
  static constexpr double kDependent = 1e-14;

  /// Returns the chosen channels in the order of choice and leaves U U[S]⁻¹ in `rows`.
  static std::vector<std::int64_t> pivot(std::vector<Head>& heads, int threads) {
    const auto count = static_cast<std::int64_t>(heads.size());
    const Eigen::Index d = heads[0].rows.rows(), r = heads[0].rows.cols();
    std::vector<std::int64_t> channels;
    Matrix gain(d, count);  // log of the squared factor by which a channel enlarges the volume
    for (Eigen::Index k = 0; k < r; ++k) {
      parallel_for(count, threads, [&](std::int64_t h) {
        Head& head = heads[static_cast<std::size_t>(h)];
        if (k > 0) deflate(head, channels.back(), k - 1);
        gain.col(h) = head.residual.array().max(kDependent).log();
      });
      Vector total = gain.rowwise().sum();
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
      head.rows = head.rows * head.directions;
      const Matrix basis = head.rows(channels, Eigen::all);
      basis.triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(head.rows);
    });
    return channels;
  }

  /// Makes `channel` pivot k of one head.
  static void deflate(Head& head, std::int64_t channel, Eigen::Index k) {
    Vector direction = head.rows.row(channel).transpose();
    const auto known = head.directions.leftCols(k);
    for (int pass = 0; pass < 2; ++pass)  // twice is enough for orthogonality to rounding
      direction -= known * (known.transpose() * direction);
    direction.normalize();
    head.directions.col(k) = direction;
    head.residual -= (head.rows * direction).cwiseAbs2();
  }

  void exchange(std::vector<Head>& heads, std::vector<std::int64_t>& channels, int threads) const {
    const auto count = static_cast<std::int64_t>(heads.size());
    const Eigen::Index d = heads[0].rows.rows(), r = heads[0].rows.cols();
    std::vector<Matrix> grams(heads.size());  // [r, r]; diagonal: 1 + |C_i|²
    Matrix change(d, r);  // of sum alpha² if channel j takes the place of basis position i
    for (Eigen::Index swaps = 0; swaps < r; ++swaps) {
      parallel_for(count, threads, [&](std::int64_t h) {
        const Matrix& rows = heads[static_cast<std::size_t>(h)].rows;
        grams[static_cast<std::size_t>(h)].noalias() = rows.transpose() * rows;
      });
      double total = 0;
      for (std::size_t h = 0; h < heads.size(); ++h)
        total += heads[h].energy(channels).dot(grams[h].diagonal());

      constexpr Eigen::Index kBlock = 64;  // channels; heads are summed in order within each
      parallel_for((d + kBlock - 1) / kBlock, threads, [&](std::int64_t b) {
        const Eigen::Index first = b * kBlock, size = std::min(kBlock, d - first);
        auto out = change.middleRows(first, size);
        out.setZero();
        for (std::size_t h = 0; h < heads.size(); ++h)
          out += changes(heads[h], grams[h], channels, first, size);
      });
      Eigen::Index channel = 0, position = 0;
      if (!(-change.minCoeff(&channel, &position) >= minimal_gain * total)) return;

      parallel_for(count, threads, [&](std::int64_t h) {
        Matrix& rows = heads[static_cast<std::size_t>(h)].rows;
        Eigen::RowVectorXd update = rows.row(channel);
        const Vector column = rows.col(position) / update(position);
        update(position) -= 1;
        rows.noalias() -= column * update;
      });
      channels[static_cast<std::size_t>(position)] = channel;
    }
  }

  /// How alpha² of one head changes, [size, r], for channels [first, first + size).
  ///
  /// With E = U U[S]⁻¹, G = EᵀE, a = energy[S] and p = E_ji, the rank-one update of E gives
  /// G_ii (energy_j + sum_k a_k E_jk²) / p² - 2 (E diag(a) G)_ji / p.
  static Matrix changes(const Head& head, const Matrix& gram,
                        const std::vector<std::int64_t>& channels, Eigen::Index first,
                        Eigen::Index size) {
    constexpr double kSmallestPivot = 1e-6;  // below it the update would lose half the digits
    const auto rows = head.rows.middleRows(first, size);
    const Vector energy = head.energy(channels);
    const Matrix scaled = rows * energy.asDiagonal();
    const Vector own = head.energy.segment(first, size) + scaled.cwiseProduct(rows).rowwise().sum();
    const Matrix cross = scaled * gram;
    const Matrix outer = own * gram.diagonal().transpose();
    return (rows.array().abs() < kSmallestPivot)
        .select(std::numeric_limits<double>::infinity(),
                (outer.array() / rows.array() - 2 * cross.array()) / rows.array());
  }
};

}  // namespace bda::inline v0

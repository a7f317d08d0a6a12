#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/coefficients.hpp"
#include "bda/decomposition/report.hpp"
#include "bda/decomposition/rounding.hpp"
#include "bda/linalg/solve.hpp"

namespace bda::inline v0 {

/// Heads decomposed over one shared basis, rounded to the type they will be stored in.
template <class W>
struct DecomposedHeads {
  std::vector<RoundedHead<W>> heads;
  std::vector<HeadSolution> solutions;  // in double, before rounding
  DecompositionReport report;
};

/// Decomposes each head W = left rightᵀ over the channels S: `B = left right[S, :]ᵀ` and
/// `C = right[rest, :] right[S, :]⁻¹`, so that `W[:, S] = B` and `W[:, rest] = B Cᵀ` (BD paper,
/// section 3.1, column form; the row form is the same on the transposed factors).
///
/// The heads must be in the coordinates of `basis`: turned by its rotation where it has one.
/// `Work` is what the products over `left` run in: float suffices for 16-bit storage.
/// Throws for invalid factors, for a basis of smaller rank than a head, and where a value does not
/// fit `storage`; each error names the head.
template <class Work, class S>
DecomposedHeads<Work> decompose_heads(std::span<const HeadFactors<S>> heads, const IndexSet& basis,
                                      DType storage, Rounding rounding, int threads) {
  static_assert(std::is_same_v<Work, float> || std::is_same_v<Work, double>);
  validate(heads);
  check::equal("basis.dim", basis.dim(), heads[0].channels(), "channels of the heads");
  check::equal("basis.size", basis.size(), heads[0].rank(), "head width");
  const std::size_t n = heads.size();
  DecomposedHeads<Work> out;
  out.heads.resize(n);
  out.solutions.resize(n);
  out.report.heads.resize(n);
  parallel_for(static_cast<std::int64_t>(n), threads, [&](std::int64_t i) {
    const auto h = static_cast<std::size_t>(i);
    const std::string name = "heads[" + std::to_string(h) + "]";
    out.solutions[h] = solve_head(heads[h].right, basis, i);
    const linalg::RowMatrix<Work> left = heads[h].left.template cast<Work>();
    const bool aware = rounding == Rounding::kAware && size_of(storage) == 2;
    // Aware rounding factorises the Gram matrix, so it needs its small directions.
    const Eigen::MatrixXd gram = aware ? linalg::gram<double>(left) : linalg::gram<Work>(left);
    if constexpr (std::is_same_v<Work, float>) {
      out.heads[h] = aware ? round_aware(storage, left, gram, out.solutions[h], name)
                           : round_plain(storage, left, out.solutions[h], name);
    } else {
      out.heads[h] = round_plain(storage, left, out.solutions[h], name);
    }
    out.report.heads[h] = report_head(left, gram, out.solutions[h], out.heads[h]);
  });
  return out;
}

}  // namespace bda::inline v0

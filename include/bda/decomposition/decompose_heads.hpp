#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bda/core/parallel.hpp"
#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/coefficients.hpp"
#include "bda/decomposition/report.hpp"
#include "bda/decomposition/rounding.hpp"
#include "bda/linalg/product.hpp"

namespace bda::inline v0 {

/// A head decomposed over a basis and rounded to the type it will be stored in.
template <class W>
struct DecomposedHead {
  RoundedHead<W> stored;
  HeadSolution solution;  // in double, before rounding
  HeadReport report;
};

/// Decomposes the head W = left rightᵀ over the channels S: `B = left right[S, :]ᵀ` and
/// `C = right[rest, :] right[S, :]⁻¹`, so that `W[:, S] = B` and `W[:, rest] = B Cᵀ` (BD paper,
/// section 3.1, column form; the row form is the same on the transposed factors).
///
/// The head must be in the coordinates of `basis`: turned by its rotation where it has one.
/// `Work` is what the products over `left` run in: float suffices for 16-bit storage.
/// Its values must be finite. Throws for a basis of smaller rank than the head, and where a value
/// does not fit `storage`; each error names the head by `index`.
template <class Work, class S>
DecomposedHead<Work> decompose_head(const HeadFactors<S>& head, const IndexSet& basis,
                                    DType storage, Rounding rounding, std::size_t index) {
  static_assert(std::is_same_v<Work, float> || std::is_same_v<Work, double>);
  const std::string name = "heads[" + std::to_string(index) + "]";
  DecomposedHead<Work> out;
  out.solution = solve_head(head.right, basis, static_cast<std::int64_t>(index));
  const bool aware = rounding == Rounding::kAware && size_of(storage) == 2;
  const auto round_and_measure = [&](const linalg::RowMatrix<Work>& left) {
    if constexpr (std::is_same_v<Work, float>) {
      out.stored = aware ? round_aware(storage, left, out.solution, name)
                         : round_plain(storage, left, out.solution, name);
    } else {
      out.stored = round_plain(storage, left, out.solution, name);
    }
    out.report = report_head(left.rows(), out.solution, out.stored);
  };
  if constexpr (std::is_same_v<Work, S>)
    round_and_measure(head.left);
  else
    round_and_measure(head.left.template cast<Work>());
  return out;
}

/// Throws unless `basis` is one for these heads.
template <class S>
void check_basis(std::span<const HeadFactors<S>> heads, const IndexSet& basis) {
  check_shapes(heads);
  check::equal("basis.dim", basis.dim(), heads[0].channels(), "channels of the heads");
  check::equal("basis.size", basis.size(), heads[0].rank(), "head width");
}

/// Heads decomposed over one shared basis.
template <class W>
struct DecomposedHeads {
  std::vector<RoundedHead<W>> heads;
  std::vector<HeadSolution> solutions;
  DecompositionReport report;
};

/// `decompose_head` for all heads of a side. Also throws for invalid factors.
template <class Work, class S>
DecomposedHeads<Work> decompose_heads(std::span<const HeadFactors<S>> heads, const IndexSet& basis,
                                      DType storage, Rounding rounding, int threads) {
  check_basis(heads, basis);
  const std::size_t n = heads.size();
  DecomposedHeads<Work> out;
  out.heads.resize(n);
  out.solutions.resize(n);
  out.report.heads.resize(n);
  parallel_for(static_cast<std::int64_t>(n), threads, [&](std::int64_t i) {
    const auto h = static_cast<std::size_t>(i);
    check_finite(heads[h], h);
    DecomposedHead<Work> done = decompose_head<Work>(heads[h], basis, storage, rounding, h);
    out.heads[h] = std::move(done.stored);
    out.solutions[h] = std::move(done.solution);
    out.report.heads[h] = done.report;
  });
  return out;
}

}  // namespace bda::inline v0

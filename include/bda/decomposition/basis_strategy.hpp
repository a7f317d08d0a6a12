#pragma once

#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "bda/decomposition/best_slice.hpp"
#include "bda/decomposition/first_r.hpp"
#include "bda/decomposition/joint_pivot.hpp"
#include "bda/decomposition/latent_rotation.hpp"
#include "bda/decomposition/residual_min.hpp"
#include "bda/decomposition/selection_heads.hpp"

namespace bda::inline v0 {

/// The ways of choosing a basis. Each has a `name` and `select(heads, options)`.
using BasisStrategy =
    std::variant<FirstR, LastR, ResidualMin, BestSlice, JointPivot, LatentRotation>;

[[nodiscard]] inline std::string_view name_of(const BasisStrategy& strategy) {
  return std::visit([](const auto& s) { return s.name; }, strategy);
}

namespace detail {

template <std::size_t... I>
BasisStrategy parse_basis_strategy(std::string_view text, std::index_sequence<I...>) {
  BasisStrategy result;
  std::string known;
  bool found = false;
  const auto consider = [&]<class Strategy>(Strategy strategy) {
    if (text == Strategy::name) {
      result = strategy;
      found = true;
    }
    known += (known.empty() ? "" : ", ") + std::string(Strategy::name);
  };
  (consider(std::variant_alternative_t<I, BasisStrategy>{}), ...);
  if (!found) throw Error("basis", "one of " + known, std::string(text));
  return result;
}

}  // namespace detail

/// A strategy with its default options, by name; throws with the list of names.
[[nodiscard]] inline BasisStrategy parse_basis_strategy(std::string_view text) {
  return detail::parse_basis_strategy(
      text, std::make_index_sequence<std::variant_size_v<BasisStrategy>>{});
}

/// The basis that `strategy` chooses for heads that share one. Where it looks at all channels,
/// rank-deficient heads take part with their missing directions filled (see `SelectionHeads`).
template <class S>
[[nodiscard]] Basis select_basis(const BasisStrategy& strategy,
                                 std::span<const HeadFactors<S>> heads,
                                 const SelectionOptions& options = {}) {
  check_shapes(heads);
  const auto select = [&](const auto& s) {
    using Strategy = std::decay_t<decltype(s)>;
    constexpr bool fixed_cuts = std::is_same_v<Strategy, FirstR> ||
                                std::is_same_v<Strategy, LastR> ||
                                std::is_same_v<Strategy, ResidualMin>;
    if constexpr (fixed_cuts)
      return s.select(heads, options);
    else
      return s.select(SelectionHeads<S>(heads, options.threads).heads(), options);
  };
  return std::visit(select, strategy);
}

}  // namespace bda::inline v0

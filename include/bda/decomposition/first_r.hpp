#pragma once

#include <span>
#include <string_view>

#include "bda/decomposition/basis.hpp"
#include "bda/decomposition/head_factors.hpp"

namespace bda::inline v0 {

/// S = the first r channels (BD paper, section 3.1).
struct FirstR {
  static constexpr std::string_view name = "first_r";

  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions&) const {
    return {IndexSet::slice(heads[0].channels(), 0, heads[0].rank()), {}};
  }
};

/// S = the last r channels.
struct LastR {
  static constexpr std::string_view name = "last_r";

  template <class S>
  Basis select(std::span<const HeadFactors<S>> heads, const SelectionOptions&) const {
    const std::int64_t d = heads[0].channels(), r = heads[0].rank();
    return {IndexSet::slice(d, d - r, r), {}};
  }
};

}  // namespace bda::inline v0

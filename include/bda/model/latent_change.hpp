#pragma once

#include <array>
#include <string>
#include <string_view>

#include "bda/core/error.hpp"

namespace bda::inline v0 {

/// What decomposition did to the channels of a layer's latent (MLA): what a latent cache of the
/// original model holds means something else where they were changed.
enum class LatentChange { kNone, kPermuted, kRotated };

[[nodiscard]] constexpr std::string_view name_of(LatentChange change) {
  constexpr std::array<std::string_view, 3> names{"none", "permuted", "rotated"};
  return names[static_cast<std::size_t>(change)];
}

/// The inverse of `name_of`; throws on any other text.
[[nodiscard]] inline LatentChange parse_latent_change(std::string_view text) {
  for (LatentChange c : {LatentChange::kNone, LatentChange::kPermuted, LatentChange::kRotated})
    if (text == name_of(c)) return c;
  throw Error("latent", "none, permuted or rotated", std::string(text));
}

}  // namespace bda::inline v0

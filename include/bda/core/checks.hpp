#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "bda/core/error.hpp"

/// Checks for set-up code. Each one builds its message from the values it compared, so that the
/// text cannot drift from the condition.
namespace bda::inline v0::check {

/// Throws unless `given == expected`; `meaning` says where the expected value comes from.
inline void equal(std::string_view name, std::int64_t given, std::int64_t expected,
                  std::string_view meaning = {}) {
  if (given == expected) return;
  std::string want = std::to_string(expected);
  if (!meaning.empty()) want.append(" (").append(meaning).append(")");
  throw Error(std::string(name), std::move(want), std::to_string(given));
}

/// Throws unless `low <= given <= high`.
inline void in_range(std::string_view name, std::int64_t given, std::int64_t low,
                     std::int64_t high) {
  if (low <= given && given <= high) return;
  throw Error(std::string(name),
              "a value from " + std::to_string(low) + " to " + std::to_string(high),
              std::to_string(given));
}

/// Throws unless `given >= low`.
inline void at_least(std::string_view name, std::int64_t given, std::int64_t low) {
  if (given >= low) return;
  throw Error(std::string(name), "at least " + std::to_string(low), std::to_string(given));
}

/// Throws unless `given` is a positive multiple of `factor`.
inline void multiple_of(std::string_view name, std::int64_t given, std::int64_t factor,
                        std::string_view meaning = {}) {
  if (given > 0 && factor > 0 && given % factor == 0) return;
  std::string want = "a positive multiple of " + std::to_string(factor);
  if (!meaning.empty()) want.append(" (").append(meaning).append(")");
  throw Error(std::string(name), std::move(want), std::to_string(given));
}

}  // namespace bda::inline v0::check

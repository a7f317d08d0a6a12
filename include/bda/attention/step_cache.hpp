#pragma once

#include <concepts>
#include <cstdint>

/// Caches that come with the caller's own attention step: paged, quantised, shared or whatever
/// else.
namespace bda::inline v0 {

/// What a backend asks of such a cache: for how many sequences it is, how many tokens of each it
/// holds and can hold, and to be told the new number once the step has run. What it stores, and
/// where, is between it and the step.
template <class Cache>
concept StepCache = requires(Cache& cache, const Cache& held, std::int64_t length) {
  { held.batch() } -> std::convertible_to<std::int64_t>;
  { held.length() } -> std::convertible_to<std::int64_t>;
  { held.capacity() } -> std::convertible_to<std::int64_t>;
  cache.set_length(length);
};

/// An attention step that names a type `Cache`. The backend then has no cache of its own: the step
/// is handed the new tokens' keys and values, stores them and attends over all that the cache
/// holds.
template <class Attend>
concept BringsCache = requires {
  typename Attend::Cache;
};

/// The cache of a backend with that step; `BuiltIn` where the step brings none.
template <class Attend, class BuiltIn>
struct CacheOfStep {
  using type = BuiltIn;
};
template <BringsCache Attend, class BuiltIn>
struct CacheOfStep<Attend, BuiltIn> {
  static_assert(StepCache<typename Attend::Cache>);
  using type = typename Attend::Cache;
};

}  // namespace bda::inline v0

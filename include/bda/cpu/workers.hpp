#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "bda/core/parallel.hpp"

namespace bda::inline v0::cpu {

/// How many of `threads` are worth starting for that many multiply-adds.
[[nodiscard]] inline int worthwhile_threads(std::int64_t multiply_adds, int threads) {
  constexpr std::int64_t kPerThread = 1 << 18;  // some ten times what it costs to start one
  return static_cast<int>(
      std::min<std::int64_t>(std::max(threads, 1), 1 + multiply_adds / kPerThread));
}

/// As `parallel_for`, with `body(worker, i)`: no two calls at the same time have the same
/// `worker` < threads, so that it can select a piece of scratch memory.
template <class Body>
void parallel_for_workers(std::int64_t count, int threads, const Body& body) {
  std::atomic<std::int64_t> next{0};
  const std::int64_t workers = std::min<std::int64_t>(std::max(threads, 1), count);
  parallel_for(workers, threads, [&](std::int64_t worker) {
    for (std::int64_t i = next++; i < count; i = next++) body(worker, i);
  });
}

}  // namespace bda::inline v0::cpu

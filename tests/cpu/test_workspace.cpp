#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <vector>

#include "bda/cpu/workers.hpp"
#include "bda/cpu/workspace.hpp"

using bda::cpu::Arena;

TEST_CASE("an arena measures what it hands out, wherever the memory begins") {
  Arena measured;
  CHECK(measured.take<double>(3) == nullptr);
  measured.take<char>(65);
  measured.take<float>(0);
  measured.take<float>(1);
  std::vector<std::byte> memory(measured.required() + 64);
  for (std::size_t shift = 0; shift < 64; ++shift) {
    const std::span<std::byte> given(memory.data() + shift, measured.required());
    Arena arena(given);
    auto* first = reinterpret_cast<std::byte*>(arena.take<double>(3));
    auto* second = reinterpret_cast<std::byte*>(arena.take<char>(65));
    arena.take<float>(0);
    auto* last = reinterpret_cast<std::byte*>(arena.take<float>(1));
    CHECK(first >= given.data());
    CHECK(second >= first + 24);
    CHECK(last >= second + 65);
    CHECK(last + 4 <= given.data() + given.size());
    for (const std::byte* piece : {first, second, last})
      CHECK(reinterpret_cast<std::uintptr_t>(piece) % Arena::kAlignment == 0);
  }
}

TEST_CASE("every item runs once, and no two of a worker at the same time") {
  for (int threads : {0, 1, 3}) {
    std::vector<std::atomic<int>> runs(100), busy(3);
    std::atomic<int> collisions{0};
    bda::cpu::parallel_for_workers(100, threads, [&](std::int64_t worker, std::int64_t i) {
      if (busy[static_cast<std::size_t>(worker)]++ != 0) ++collisions;
      ++runs[static_cast<std::size_t>(i)];
      --busy[static_cast<std::size_t>(worker)];
    });
    CHECK(collisions == 0);
    for (const auto& count : runs) CHECK(count == 1);
  }
}

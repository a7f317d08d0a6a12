#include <atomic>
#include <bda/core/parallel.hpp>
#include <catch2/catch_test_macros.hpp>
#include <set>
#include <stdexcept>
#include <string>

namespace {

TEST_CASE("parallel_for calls the body once for each index") {
  for (std::int64_t count : {0, 1, 2, 7, 1000})
    for (int threads : {-1, 0, 1, 2, 5}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
      bda::parallel_for(count, threads,
                        [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
      int wrong = 0;
      for (const auto& c : calls) wrong += c != 1;
      CAPTURE(count, threads);
      CHECK(wrong == 0);
    }
}

TEST_CASE("parallel_for uses no more threads than asked, the caller's among them") {
  std::mutex mutex;
  std::set<std::thread::id> ids;
  bda::parallel_for(200, 3, [&](std::int64_t) {
    const std::lock_guard lock(mutex);
    ids.insert(std::this_thread::get_id());
  });
  CHECK(ids.size() <= 3);

  ids.clear();
  bda::parallel_for(10, 1, [&](std::int64_t) { ids.insert(std::this_thread::get_id()); });
  CHECK(ids == std::set{std::this_thread::get_id()});
}

TEST_CASE("Two threads of parallel_for run at the same time") {
  // Each item waits for the other: with one thread this would never end.
  std::atomic<int> arrived{0};
  bda::parallel_for(2, 2, [&](std::int64_t) {
    ++arrived;
    arrived.notify_all();
    for (int seen = arrived; seen < 2; seen = arrived) arrived.wait(seen);
  });
  CHECK(arrived == 2);
}

TEST_CASE("parallel_for rethrows a body's exception after every thread has stopped") {
  for (int threads : {1, 2, 4}) {
    std::atomic<int> running{0}, started{0};
    std::string caught;
    try {
      bda::parallel_for(10000, threads, [&](std::int64_t i) {
        ++running;
        ++started;
        if (i == 5) {
          --running;
          throw std::runtime_error("item 5");
        }
        --running;
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    CAPTURE(threads);
    CHECK(caught == "item 5");
    CHECK(running == 0);
    CHECK(started >= 6);  // items are handed out in order
    if (threads == 1) CHECK(started == 6);
  }
}

TEST_CASE("parallel_for rethrows one exception where every body throws") {
  int caught = 0;
  try {
    bda::parallel_for(100, 4, [](std::int64_t i) { throw i; });
  } catch (std::int64_t) {
    ++caught;
  }
  CHECK(caught == 1);
}

}  // namespace

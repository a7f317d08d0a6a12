// A program outside the project, with nothing but the two targets.
#include <atomic>
#include <bda/bda.hpp>
#include <bda/checkpoint.hpp>

int main() {
  std::atomic<std::int64_t> sum{0};
  bda::parallel_for(5, 2, [&](std::int64_t i) { sum += i; });
  return sum == 10 ? 0 : 1;
}

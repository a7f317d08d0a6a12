#pragma once

#include <ctime>
#include <fstream>
#include <string>

/// What the single-threaded benchmarks share.
namespace bda_bench {

/// Seconds of processor time that `call` takes in this thread: other programs on the machine
/// disturb it less than they do the clock on the wall.
template <class Call>
double cpu_seconds(const Call& call) {
  const auto now = [] {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const double start = now();
  call();
  return now() - start;
}

inline std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace bda_bench

#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <utility>

namespace perplexity {

/// A bar on standard error that grows as work is done, and is wiped away at the end. Silent where
/// standard error is not a terminal. `advance` may be called from any thread.
class ProgressBar {
 public:
  ProgressBar(std::string label, std::int64_t total)
      : label_(std::move(label)), total_(total), shown_(isatty(STDERR_FILENO) == 1) {
    draw();
  }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() {
    if (shown_) std::fputs("\r\033[K", stderr);  // back to column 0, erase the line
  }

  void advance() {
    const std::lock_guard lock(mutex_);
    ++done_;
    draw();
  }
  void advance_to(std::int64_t done) {
    const std::lock_guard lock(mutex_);
    done_ = done;
    draw();
  }

 private:
  void draw() const {
    if (!shown_) return;
    constexpr std::int64_t kWidth = 30;
    const std::int64_t filled = total_ > 0 ? done_ * kWidth / total_ : kWidth;
    std::string bar(static_cast<std::size_t>(filled), '#');
    bar.append(static_cast<std::size_t>(kWidth - filled), '.');
    std::fprintf(stderr, "\r%s [%s] %lld/%lld", label_.c_str(), bar.c_str(),
                 static_cast<long long>(done_), static_cast<long long>(total_));
    std::fflush(stderr);
  }

  std::string label_;
  std::int64_t total_, done_ = 0;
  bool shown_;
  std::mutex mutex_;
};

}  // namespace perplexity

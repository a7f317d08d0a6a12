#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace bda::inline v0::cpu {

/// Hands out aligned pieces of a caller's workspace, one after the other.
///
/// One function lays out a computation's buffers; run on an arena without memory it measures, so
/// that the size asked for and the size used cannot differ.
class Arena {
 public:
  static constexpr std::size_t kAlignment = 64;  // bytes, a cache line

  /// Measures only: every piece is null.
  Arena() = default;
  explicit Arena(std::span<std::byte> memory) {
    void* start = memory.data();
    std::size_t space = memory.size();
    base_ = static_cast<std::byte*>(std::align(kAlignment, 0, start, space));
  }

  /// `count` values, not initialised.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t offset = used_;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset);
  }

  /// Bytes of any memory, however aligned, that holds what was taken so far.
  [[nodiscard]] std::size_t required() const { return used_ + kAlignment - 1; }

 private:
  std::byte* base_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace bda::inline v0::cpu

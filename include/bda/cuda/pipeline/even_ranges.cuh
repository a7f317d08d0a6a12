#pragma once

#include <cstdint>

namespace bda::inline v0::cuda {

/// A number of items in ranges as even as can be: the first ones are one longer than the others.
class EvenRanges {
 public:
  struct Range {
    int begin, end;
  };

  EvenRanges() = default;

  /// `items` in `ranges`, at least one; both less than 2^31.
  EvenRanges(std::int64_t items, std::int64_t ranges)
      : shorter_(static_cast<int>(items / ranges)),
        longer_ranges_(static_cast<int>(items % ranges)) {}

  /// The items of a range, where those of all begin with `first`.
  [[nodiscard]] __device__ __forceinline__ Range at(int range, int first = 0) const {
    const int begin = first + range * shorter_ + min(range, longer_ranges_);
    return {begin, begin + shorter_ + (range < longer_ranges_ ? 1 : 0)};
  }

 private:
  int shorter_ = 0, longer_ranges_ = 0;
};

}  // namespace bda::inline v0::cuda

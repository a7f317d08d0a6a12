#pragma once

#include <bit>
#include <cstdint>

#include "bda/cuda/host_device.hpp"

namespace bda::inline v0::cuda {

/// Division by a number that the host knows before the launch: a product and a shift in place of
/// some thirty dependent instructions. (Granlund and Montgomery, Division by invariant integers
/// using multiplication, 1994.)
class Divisor {
 public:
  Divisor() = default;

  /// `value` from 1 to 2^31 - 1.
  explicit Divisor(int value) : value_(value) {
    const auto d = static_cast<std::uint32_t>(value);
    const int log2 = std::bit_width(d - 1);  // rounded up
    shift_ = 31 + log2;
    multiplier_ = static_cast<std::uint32_t>(((std::uint64_t{1} << shift_) + d - 1) / d);
  }

  [[nodiscard]] BDA_HOST_DEVICE int value() const { return value_; }

  /// floor(n / value); n from 0 to 2^31 - 1.
  [[nodiscard]] BDA_HOST_DEVICE int quotient(int n) const {
    return static_cast<int>((std::uint64_t{static_cast<std::uint32_t>(n)} * multiplier_) >> shift_);
  }

  [[nodiscard]] BDA_HOST_DEVICE int remainder(int n) const { return n - quotient(n) * value_; }

 private:
  std::uint32_t multiplier_ = std::uint32_t{1} << 31;  // from here to 2^32 - 1
  int shift_ = 31;
  int value_ = 1;
};

}  // namespace bda::inline v0::cuda

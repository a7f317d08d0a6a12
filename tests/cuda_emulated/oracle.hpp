#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "bda/core/tensor_view.hpp"
#include "bda/cuda/element.hpp"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/projection/packing.hpp"
#include "machine.hpp"

/// Operands on the host, sums in double precision, and the bound of tests/cuda/reference.cu.
namespace bda_test {

using bda_emulated::Timing;

/// An H100 with few multiprocessors: persistent CTAs have several tiles each in small problems.
inline bda::cuda::DeviceInfo device_of(int multiprocessors) {
  return {9, 0, multiprocessors, static_cast<int>(bda_emulated::kSharedBytes), true};
}

inline double to_double(float v) { return static_cast<double>(v); }

/// Elements on a boundary of 128 bytes, which a vector does not promise.
template <class T>
class Aligned {
 public:
  explicit Aligned(std::int64_t count)
      : bytes_(static_cast<std::size_t>(count) * sizeof(T) + 128),
        data_(reinterpret_cast<T*>((reinterpret_cast<std::uintptr_t>(bytes_.data()) + 127) / 128 *
                                   128)),
        count_(count) {}
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;

  /// Every byte 0xff, a NaN in every type.
  void poison() { std::fill(bytes_.begin(), bytes_.end(), std::uint8_t{0xff}); }
  void poison(std::int64_t i) { std::memset(static_cast<void*>(data_ + i), 0xff, sizeof(T)); }
  void fill_normal(std::mt19937_64& random, float scale) {
    std::normal_distribution<float> distribution;
    for (std::int64_t i = 0; i < count_; ++i)
      data_[i] = static_cast<T>(scale * distribution(random));
  }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::int64_t size() const { return count_; }
  [[nodiscard]] const std::vector<std::uint8_t>& bytes() const { return bytes_; }
  /// The values that are still poison.
  [[nodiscard]] std::int64_t poisoned() const {
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < count_; ++i) {
      std::uint8_t raw[sizeof(T)];
      std::memcpy(raw, data_ + i, sizeof(T));
      n += std::all_of(raw, raw + sizeof(T), [](std::uint8_t b) { return b == 0xff; });
    }
    return n;
  }

 private:
  std::vector<std::uint8_t> bytes_;
  T* data_;
  std::int64_t count_;
};

/// C of one side: as a matrix, and packed.
template <class T>
struct Coefficients {
  Coefficients(std::int64_t rest, std::int64_t heads, std::int64_t width, std::mt19937_64& random)
      : layout{bda::cuda::PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, rest, heads,
               width},
        plain(rest * layout.columns()),
        packed(layout.size()) {
    plain.fill_normal(random, 0.05f);
    for (std::int64_t k = 0; k < rest; ++k)
      for (std::int64_t j = 0; j < layout.columns(); ++j)
        packed.data()[layout.offset(k, j)] = plain.data()[k * layout.columns() + j];
  }
  [[nodiscard]] double at(std::int64_t k, std::int64_t column) const {
    return to_double(static_cast<float>(plain.data()[k * layout.columns() + column]));
  }

  bda::cuda::PackedCoefficients layout;
  Aligned<T> plain, packed;
};

/// A sum and the sum of its terms' sizes.
struct Exact {
  double sum = 0, size = 0;
  void add(double v) {
    sum += v;
    size += std::abs(v);
  }
  /// How far a sum of `terms` products in fp32 may be off, before it is rounded.
  [[nodiscard]] double slack(std::int64_t terms) const {
    return 0x1p-23 * static_cast<double>(terms + 32) * size + 0x1p-25;
  }
};

template <class T>
constexpr double kUnitRoundoff = std::is_same_v<T, float>    ? 0x1p-24
                                 : std::is_same_v<T, __half> ? 0x1p-11
                                                             : 0x1p-8;

template <class T>
bool is_within_bound(T got, const Exact& exact, std::int64_t terms) {
  return std::abs(to_double(static_cast<float>(got)) - exact.sum) <=
         kUnitRoundoff<T> * std::abs(exact.sum) + exact.slack(terms);
}

/// x[S] + x[rest] C (+ bias) of one column, for a row x of kv_dim channels.
template <class T>
Exact project(const T* x, const Coefficients<T>& c, std::int64_t basis_begin, const T* bias,
              std::int64_t column) {
  const std::int64_t width = c.layout.width;
  const auto channel = [&](std::int64_t i) { return to_double(static_cast<float>(x[i])); };
  Exact exact;
  exact.add(channel(basis_begin + column % width));
  if (bias != nullptr) exact.add(to_double(static_cast<float>(bias[column])));
  for (std::int64_t k = 0; k < c.layout.rest; ++k)
    exact.add(channel(k < basis_begin ? k : k + width) * c.at(k, column));
  return exact;
}

/// Every timing, with a seed each.
struct TimingCase {
  Timing timing;
  std::uint64_t seed;
};
constexpr TimingCase kTimings[] = {
    {Timing::kEarlyCopies, 1}, {Timing::kLateCopies, 2}, {Timing::kRandom, 3}};

}  // namespace bda_test

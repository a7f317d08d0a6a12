#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "bda/core/status.hpp"
#include "bda/cuda/element.hpp"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/projection/packing.hpp"
#include "machine.hpp"

/// Operands on the host, sums in double precision, the bound of tests/cuda/reference.cu, and a
/// launch in every timing.
namespace bda_test {

/// An H100 with few multiprocessors: persistent CTAs have several tiles each in small problems.
inline bda::cuda::DeviceInfo device_of(int multiprocessors) {
  return {9, 0, multiprocessors, static_cast<int>(bda_emulated::kSharedBytes), true};
}

template <class T>
double to_double(T v) {
  return static_cast<double>(static_cast<float>(v));
}

/// Elements on the boundary that the strictest argument wants, which a vector does not promise.
template <class T>
class Aligned {
 public:
  static constexpr std::uintptr_t kBytes = 256;

  explicit Aligned(std::int64_t count)
      : bytes_(static_cast<std::size_t>(count) * sizeof(T) + kBytes),
        data_(reinterpret_cast<T*>((reinterpret_cast<std::uintptr_t>(bytes_.data()) + kBytes - 1) /
                                   kBytes * kBytes)),
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
    return to_double(plain.data()[k * layout.columns() + column]);
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
  return std::abs(to_double(got) - exact.sum) <=
         kUnitRoundoff<T> * std::abs(exact.sum) + exact.slack(terms);
}

/// x[S] + x[rest] C (+ bias) of one column, for a row x of kv_dim channels.
template <class T>
Exact project(const T* x, const Coefficients<T>& c, std::int64_t basis_begin, const T* bias,
              std::int64_t column) {
  const std::int64_t width = c.layout.width;
  const auto channel = [&](std::int64_t i) { return to_double(x[i]); };
  Exact exact;
  exact.add(channel(basis_begin + column % width));
  if (bias != nullptr) exact.add(to_double(bias[column]));
  for (std::int64_t k = 0; k < c.layout.rest; ++k)
    exact.add(channel(k < basis_begin ? k : k + width) * c.at(k, column));
  return exact;
}

/// Launches in every timing, each time into poisoned `outputs`, and checks them; their bits must
/// not depend on the timing.
template <class Launch, class Check, class... Outputs>
void in_every_timing(const Launch& launch, const Check& check, Outputs&... outputs) {
  using bda_emulated::Timing;
  std::vector<std::uint8_t> first;
  std::uint64_t seed = 0;
  for (const Timing timing : {Timing::kEarlyCopies, Timing::kLateCopies, Timing::kRandom}) {
    (outputs.poison(), ...);
    bda_emulated::set_timing(timing, ++seed);
    const bda::Status status = launch();
    INFO(status.message() << ", seed " << seed);
    REQUIRE(status.ok());
    check();
    std::vector<std::uint8_t> all;
    (all.insert(all.end(), outputs.bytes().begin(), outputs.bytes().end()), ...);
    if (first.empty()) first = all;
    CHECK((all == first));
  }
}

}  // namespace bda_test

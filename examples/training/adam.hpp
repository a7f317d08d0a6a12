#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>

#include "model.hpp"

namespace training_example {

/// Adam (arXiv 1412.6980) with its default decays.
template <class C>
class Adam {
 public:
  explicit Adam(std::int64_t parameters)
      : first_(Array::Zero(parameters)), second_(Array::Zero(parameters)) {}

  /// One step; sets the gradients to zero.
  void step(Weights<C>& weights, Weights<C>& gradients, double rate) {
    ++steps_;
    const C correct_first = static_cast<C>(1 / (1 - std::pow(kFirst, steps_)));
    const C correct_second = static_cast<C>(1 / (1 - std::pow(kSecond, steps_)));
    Array g(first_.size());
    std::int64_t at = 0;
    gradients.for_each([&](C* values, std::int64_t count) {
      Eigen::Map<Array> part(values, count);
      g.segment(at, count) = part;
      part.setZero();
      at += count;
    });
    first_ = C(kFirst) * first_ + C(1 - kFirst) * g;
    second_ = C(kSecond) * second_ + C(1 - kSecond) * g.square();
    const Array change = static_cast<C>(rate) * correct_first * first_ /
                         ((correct_second * second_).sqrt() + C(1e-8));
    at = 0;
    weights.for_each([&](C* values, std::int64_t count) {
      Eigen::Map<Array>(values, count) -= change.segment(at, count);
      at += count;
    });
  }

 private:
  using Array = Eigen::Array<C, Eigen::Dynamic, 1>;
  static constexpr double kFirst = 0.9, kSecond = 0.999;

  Array first_, second_;
  int steps_ = 0;
};

}  // namespace training_example

#pragma once

#include <type_traits>

#include "bda/preparation/prepare.hpp"

// Says that `prepare` is instantiated elsewhere (preparation.cpp.in), for the storage types:
// compiled once for all executables of this project it saves minutes.
namespace bda_project {

/// What a layer that is stored in T is prepared from: float holds all shorter values exactly.
template <class T>
using Source = std::conditional_t<sizeof(T) == 8, double, float>;

}  // namespace bda_project

#define BDA_PROJECT_PREPARE(T)                                                                \
  bda::PreparedLayer<T> bda::prepare<T>(const bda::AttentionWeights<bda_project::Source<T>>&, \
                                        const bda::PreparationOptions&)

extern template BDA_PROJECT_PREPARE(double);
extern template BDA_PROJECT_PREPARE(float);
extern template BDA_PROJECT_PREPARE(Eigen::half);
extern template BDA_PROJECT_PREPARE(Eigen::bfloat16);

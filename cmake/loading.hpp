#pragma once

#include "bda/checkpoint/load.hpp"
#include "bda/linalg/scalar.hpp"

// Says that the loading of checkpoints is instantiated elsewhere (loading.cpp.in): with all
// families it takes long to compile.
#define BDA_PROJECT_LOAD_LAYER(T)                                    \
  bda::AttentionWeights<T> bda::checkpoint::load_attention_layer<T>( \
      const bda::checkpoint::Checkpoint&, std::int64_t)
#define BDA_PROJECT_LOAD_MODEL(T)                                              \
  bda::checkpoint::TransformerWeights<T> bda::checkpoint::load_transformer<T>( \
      const bda::checkpoint::Checkpoint&)

extern template BDA_PROJECT_LOAD_LAYER(double);
extern template BDA_PROJECT_LOAD_LAYER(float);
extern template BDA_PROJECT_LOAD_LAYER(Eigen::half);
extern template BDA_PROJECT_LOAD_LAYER(Eigen::bfloat16);
extern template BDA_PROJECT_LOAD_MODEL(double);
extern template BDA_PROJECT_LOAD_MODEL(float);
extern template BDA_PROJECT_LOAD_MODEL(Eigen::half);
extern template BDA_PROJECT_LOAD_MODEL(Eigen::bfloat16);

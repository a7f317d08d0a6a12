#pragma once

#include "bda/checkpoint/convert_checkpoint.hpp"
#include "loading.hpp"
#include "preparation.hpp"

// Says that conversion and verification are instantiated elsewhere (conversion.cpp).
#define BDA_PROJECT_CONVERT                                           \
  bda::checkpoint::ConversionReport                                   \
  bda::checkpoint::convert_checkpoint<bda::checkpoint::PrepareLayer>( \
      const std::filesystem::path&, const std::filesystem::path&,     \
      const bda::checkpoint::ConversionOptions&, const bda::checkpoint::PrepareLayer&)
#define BDA_PROJECT_VERIFY(S)                                                  \
  bda::checkpoint::AttentionVerification bda::checkpoint::verify_attention<S>( \
      const bda::AttentionWeights<S>&, const bda::AttentionWeights<S>&, bda::DType)

extern template BDA_PROJECT_CONVERT;
extern template BDA_PROJECT_VERIFY(double);
extern template BDA_PROJECT_VERIFY(float);

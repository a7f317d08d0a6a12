#pragma once

#include <cstdint>
#include <random>

#include "bda/linear/factors.hpp"

namespace bda_test {

inline bda::linalg::RowMatrix<double> random_matrix(std::mt19937& random, Eigen::Index rows,
                                                    Eigen::Index cols) {
  std::normal_distribution<double> normal;
  return bda::linalg::RowMatrix<double>::NullaryExpr(rows, cols, [&] { return normal(random); });
}

inline std::int64_t in(std::mt19937& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

/// Factors of unit-sized columns: W has entries of the order of 1.
inline bda::linear::FactorPair random_pair(std::mt19937& random, std::int64_t inputs,
                                           std::int64_t outputs, std::int64_t rank) {
  return {random_matrix(random, inputs, rank) / std::sqrt(double(rank)),
          random_matrix(random, rank, outputs)};
}

}  // namespace bda_test

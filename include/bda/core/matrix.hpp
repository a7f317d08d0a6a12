#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bda/core/checks.hpp"

namespace bda::inline v0 {

/// A row-major matrix that owns its values: how weights are held before and after preparation.
///
/// Plain data with no linear algebra of its own; `linalg/eigen.hpp` maps it.
template <class T>
struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<T> values;  // [rows, cols]

  Matrix() = default;
  Matrix(std::int64_t rows_, std::int64_t cols_) : rows(rows_), cols(cols_) {
    check::at_least("Matrix.rows", rows_, 0);
    check::at_least("Matrix.cols", cols_, 0);
    values.resize(static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_));
  }

  [[nodiscard]] bool empty() const { return values.empty(); }
  [[nodiscard]] std::int64_t size() const { return rows * cols; }
  [[nodiscard]] std::int64_t bytes() const { return size() * static_cast<std::int64_t>(sizeof(T)); }
  T* data() { return values.data(); }
  const T* data() const { return values.data(); }
  T& operator()(std::int64_t i, std::int64_t j) {
    return values[static_cast<std::size_t>(i * cols + j)];
  }
  const T& operator()(std::int64_t i, std::int64_t j) const {
    return values[static_cast<std::size_t>(i * cols + j)];
  }
};

}  // namespace bda::inline v0

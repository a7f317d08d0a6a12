#pragma once

#include <cstdint>

#include "bda/core/dtype.hpp"
#include "bda/core/index_set.hpp"
#include "bda/linalg/eigen.hpp"

namespace bda::inline v0 {

/// What a strategy chooses for all heads of one side of a layer.
struct Basis {
  IndexSet channels;  // S, r of d, counted after the rotation where there is one
  /// Empty, or the orthogonal Q [d, d] by which the input is turned first: c Q replaces c, and
  /// Qᵀ W replaces every W that c is multiplied by. Both sides of a layer share it.
  linalg::RowMatrix<double> rotation;
};

/// What a strategy may need to know besides the heads.
struct SelectionOptions {
  DType storage = DType::kF32;  // the type the result will be stored in (residual_min)
  int threads = 1;
};

}  // namespace bda::inline v0

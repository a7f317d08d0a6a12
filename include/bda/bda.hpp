#pragma once

/// Everything that needs Eigen only.

#include "bda/core/checks.hpp"
#include "bda/core/dtype.hpp"
#include "bda/core/error.hpp"
#include "bda/core/index_set.hpp"
#include "bda/core/matrix.hpp"
#include "bda/core/parallel.hpp"
#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/linalg/eigen.hpp"
#include "bda/linalg/scalar.hpp"
#include "bda/linalg/solve.hpp"
#include "bda/model/attention_config.hpp"
#include "bda/model/attention_weights.hpp"
#include "bda/model/rope.hpp"
#include "bda/version.hpp"

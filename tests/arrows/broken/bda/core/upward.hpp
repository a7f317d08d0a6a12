#pragma once

#include <Eigen/Core>
#include <vector>

#include "bda/bda.hpp"
#include "bda/core/other.hpp"
#include "bda/linalg/eigen.hpp"
#include "bda/version.hpp"

#pragma once

#include "bda/linalg/eigen.hpp"

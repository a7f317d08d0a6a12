#pragma once

#include "bda/core/error.hpp"

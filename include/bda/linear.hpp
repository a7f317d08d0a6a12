#pragma once

/// Low-rank linear layers: truncation, basis decomposition, and running them on the CPU.
#include "bda/linear/factors.hpp"
#include "bda/linear/forward.hpp"
#include "bda/linear/prepare.hpp"
#include "bda/linear/truncate.hpp"
#include "bda/linear/weights.hpp"

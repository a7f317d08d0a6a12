#pragma once

/// Attention by sums of convolutions: bases, their recovery from scores, forward and backward.
#include "bda/conv_basis/attention.hpp"
#include "bda/conv_basis/basis.hpp"
#include "bda/conv_basis/columns.hpp"
#include "bda/conv_basis/convolution.hpp"
#include "bda/conv_basis/exponential.hpp"
#include "bda/conv_basis/gradient.hpp"
#include "bda/conv_basis/product.hpp"
#include "bda/conv_basis/recover.hpp"

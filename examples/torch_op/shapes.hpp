#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

#include "bda/core/status.hpp"

/// What the CPU's and the GPU's operators check alike.
namespace bda_torch {

/// Coefficients C [rest, heads, width] as `bda::pack` gives them, and the basis [basis, basis +
/// width) of the latent.
struct Side {
  std::int64_t rest, heads, width, basis;
};

inline void check_rows(const char* name, const at::Tensor& x, std::int64_t dims) {
  TORCH_CHECK(x.dim() == dims, name, ": expected ", dims, " dimensions, got ", x.dim());
  TORCH_CHECK(x.size(dims - 1) <= 1 || x.stride(dims - 1) == 1, name,
              ": expected unit stride in the last dimension, got ", x.stride(dims - 1));
}

inline Side check_side(const at::Tensor& like, const at::Tensor& packed, std::int64_t kv_dim,
                       std::int64_t heads, std::int64_t width, std::int64_t basis,
                       std::int64_t packed_size) {
  TORCH_CHECK(packed.scalar_type() == like.scalar_type(), "packed: expected ", like.scalar_type(),
              " like the activations, got ", packed.scalar_type());
  TORCH_CHECK(packed.device() == like.device(), "packed: expected device ", like.device(), ", got ",
              packed.device());
  TORCH_CHECK(packed.dim() == 1 && packed.is_contiguous() && packed.numel() == packed_size,
              "packed: expected what bda.pack makes of C [", kv_dim - width, ", ", heads, " * ",
              width, "], ", packed_size, " values, got ", packed.sizes());
  TORCH_CHECK(0 <= basis && basis <= kv_dim - width, "basis: expected from 0 to ", kv_dim - width,
              ", got ", basis);
  return {kv_dim - width, heads, width, basis};
}

inline void check_width(std::int64_t heads, std::int64_t width, std::int64_t kv_dim) {
  TORCH_CHECK(heads > 0, "heads: expected at least 1, got ", heads);
  TORCH_CHECK(0 < width && width < kv_dim, "width: expected from 1 to ", kv_dim - 1, ", got ",
              width);
}

inline void check_status(const bda::Status& status) { TORCH_CHECK(status.ok(), status.message()); }

}  // namespace bda_torch

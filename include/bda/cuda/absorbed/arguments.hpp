#pragma once

#include <cstdint>
#include <optional>

#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda/absorbed/config.hpp"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/element.hpp"
#include "bda/cuda/projection/packing.hpp"

namespace bda::inline v0::cuda {

/// A product of absorbed decoding (multi-head latent attention over the latent cache itself):
///   kQuery:  out[t, h, S] = x[t, h, :], out[t, h, rest] = x[t, h, :] C_h^T
///   kOutput: out[t, h, :] = x[t, h, S] + x[t, h, rest] C_h (+ bias[h, :])
/// with C_h = C[:, h, :] of the key's side for kQuery, of the value's for kOutput, packed once for
/// both this and the projection. All pointers are device pointers; T is __half, __nv_bfloat16 or
/// float.
template <class T>
struct AbsorbedArguments {
  AbsorbedProduct product = AbsorbedProduct::kQuery;
  TensorView<const T, 3> x;         // [tokens, heads, width], for kOutput [tokens, heads, kv_dim]
  const T* coefficients = nullptr;  // packed as `packing` says
  PackedCoefficients packing;
  std::int64_t basis_begin = 0;
  const T* bias = nullptr;  // [heads, width], dense, kOutput alone; null for none
  TensorView<T, 3> out;     // [tokens, heads, kv_dim], for kOutput [tokens, heads, width]
  /// Programmatic dependent launch, as in ProjectionArguments: coefficients and bias must not be
  /// written by the kernel before.
  bool dependent_launch = false;
  std::optional<AbsorbedConfig> force;  // in place of `pick`, for tests and tuning

  [[nodiscard]] constexpr AbsorbedShape shape() const {
    return {product,       Element<T>::dtype, x.extent(0), packing.rest + packing.width,
            packing.width, packing.heads,     basis_begin};
  }
};

/// Everything about `args` that can be checked without a device.
template <class T>
[[nodiscard]] Status check_arguments(const AbsorbedArguments<T>& args) {
  constexpr std::int64_t kLargest = 0x7fffffff;
  const PackedCoefficients& p = args.packing;
  if (p.version != PackedCoefficients::kVersion)
    return Status::invalid("packing.version", "the version this library packs",
                           PackedCoefficients::kVersion, p.version);
  if (p.dtype != Element<T>::dtype)
    return Status::invalid("packing.dtype", "the type of x (as DType)",
                           static_cast<std::int64_t>(Element<T>::dtype),
                           static_cast<std::int64_t>(p.dtype));
  if (p.heads < 1 || p.heads > 65535)
    return Status::invalid("packing.heads", "from 1 to", 65535, p.heads);
  if (p.width < 1) return Status::invalid("packing.width", "at least", 1, p.width);
  if (p.rest < 1) return Status::invalid("packing.rest", "at least", 1, p.rest);
  if (p.columns() > kLargest)
    return Status::invalid("packing.columns()", "at most", kLargest, p.columns());
  const bool query = args.product == AbsorbedProduct::kQuery;
  const std::int64_t kv_dim = p.rest + p.width;
  if (args.x.extent(0) < 0 || args.x.extent(0) > 65535)  // absorbing is for few tokens
    return Status::invalid("x.extent(0)", "from 0 to", 65535, args.x.extent(0));
  if (args.x.extent(1) != p.heads)
    return Status::invalid("x.extent(1)", "equal to packing.heads", p.heads, args.x.extent(1));
  if (query && args.x.extent(2) != p.width)
    return Status::invalid("x.extent(2)", "equal to packing.width", p.width, args.x.extent(2));
  if (!query && args.x.extent(2) != kv_dim)
    return Status::invalid("x.extent(2)", "equal to packing.rest + packing.width", kv_dim,
                           args.x.extent(2));
  if (args.basis_begin < 0 || args.basis_begin > p.rest)
    return Status::invalid("basis_begin", "from 0 to packing.rest", p.rest, args.basis_begin);
  if (query && args.bias != nullptr)
    return Status::invalid("bias", "null for a query, unlike", 0, 1);
  if (args.out.extent(0) != args.x.extent(0))
    return Status::invalid("out.extent(0)", "equal to x.extent(0)", args.x.extent(0),
                           args.out.extent(0));
  if (args.out.extent(1) != p.heads)
    return Status::invalid("out.extent(1)", "equal to packing.heads", p.heads, args.out.extent(1));
  if (query && args.out.extent(2) != kv_dim)
    return Status::invalid("out.extent(2)", "equal to packing.rest + packing.width", kv_dim,
                           args.out.extent(2));
  if (!query && args.out.extent(2) != p.width)
    return Status::invalid("out.extent(2)", "equal to packing.width", p.width, args.out.extent(2));
  if (args.x.stride(2) != 1) return Status::invalid("x.stride(2)", "equal to", 1, args.x.stride(2));
  if (args.out.stride(2) != 1)
    return Status::invalid("out.stride(2)", "equal to", 1, args.out.stride(2));
  if (args.x.stride(0) < 0 || args.x.stride(1) < 0)
    return Status::invalid("x.stride(0) and x.stride(1)", "at least", 0,
                           args.x.stride(0) < 0 ? args.x.stride(0) : args.x.stride(1));
  const std::int64_t tokens = args.out.extent(0), row = args.out.extent(2);
  if (!detail::keeps_rows_apart(tokens, p.heads, row, args.out.stride(0), args.out.stride(1)))
    return Status::invalid("out.stride(1)", "strides that keep the rows of out apart, at least",
                           row, args.out.stride(1));
  if (tokens == 0) return {};
  if (args.x.data == nullptr) return Status::invalid("x.data", "not null, unlike", 0, 0);
  if (args.coefficients == nullptr)
    return Status::invalid("coefficients", "not null, unlike", 0, 0);
  if (args.out.data == nullptr) return Status::invalid("out.data", "not null, unlike", 0, 0);
  if constexpr (sizeof(T) == 2) {  // these kernels move 16 bytes at a time
    if (p.width % 8 != 0) return Status::invalid("packing.width", "a multiple of", 8, p.width);
    if (p.rest % 8 != 0) return Status::invalid("packing.rest", "a multiple of", 8, p.rest);
    if (args.basis_begin % 8 != 0)
      return Status::invalid("basis_begin", "a multiple of", 8, args.basis_begin);
    for (int i = 0; i < 2; ++i) {
      if (args.x.stride(i) % 8 != 0)
        return Status::invalid(i == 0 ? "x.stride(0)" : "x.stride(1)", "a multiple of", 8,
                               args.x.stride(i));
      if (args.out.stride(i) % 8 != 0)
        return Status::invalid(i == 0 ? "out.stride(0)" : "out.stride(1)", "a multiple of", 8,
                               args.out.stride(i));
    }
    if (detail::misalignment(args.x.data, 16))
      return Status::invalid("x.data modulo 16", "equal to", 0,
                             detail::misalignment(args.x.data, 16));
    if (detail::misalignment(args.out.data, 16))
      return Status::invalid("out.data modulo 16", "equal to", 0,
                             detail::misalignment(args.out.data, 16));
    if (detail::misalignment(args.coefficients, 128))
      return Status::invalid("coefficients modulo 128", "equal to", 0,
                             detail::misalignment(args.coefficients, 128));
  }
  return {};
}

}  // namespace bda::inline v0::cuda

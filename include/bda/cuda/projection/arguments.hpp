#pragma once

#include <cstdint>
#include <optional>

#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/element.hpp"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/projection/packing.hpp"

namespace bda::inline v0::cuda {

/// `out[t, h, :] = x[t, S] + x[t, rest] C[:, h, :] (+ bias[h, :])`, S = [basis_begin,
/// basis_begin + width): the basis-decomposed key or value projection (BD paper, section 3).
/// All pointers are device pointers; T is __half, __nv_bfloat16 or float.
template <class T>
struct ProjectionArguments {
  TensorView<const T, 2> x;         // [tokens, kv_dim]
  const T* coefficients = nullptr;  // packed as `packing` says
  PackedCoefficients packing;
  std::int64_t basis_begin = 0;
  const T* bias = nullptr;  // [heads, width], dense; null for none
  TensorView<T, 3> out;     // [tokens, heads, width]
  /// Programmatic dependent launch: start while the kernel before in the stream drains. The kernel
  /// waits for it before it touches x and out, but reads `coefficients` and `bias` at once: these
  /// must not be written by that kernel.
  bool dependent_launch = false;
  std::optional<ProjectionConfig> force;  // in place of `pick`, for tests and tuning

  [[nodiscard]] constexpr ProjectionShape shape() const {
    return {Element<T>::dtype, x.extent(0), x.extent(1), packing.width, packing.heads, basis_begin};
  }
};

/// Everything about `args` that can be checked without a device.
template <class T>
[[nodiscard]] Status check_arguments(const ProjectionArguments<T>& args) {
  constexpr std::int64_t kLargest = 0x7fffffff;  // token and column indices are 32-bit inside
  const PackedCoefficients& p = args.packing;
  if (p.version != PackedCoefficients::kVersion)
    return Status::invalid("packing.version", "the version this library packs",
                           PackedCoefficients::kVersion, p.version);
  if (p.dtype != Element<T>::dtype)
    return Status::invalid("packing.dtype", "the type of x (as DType)",
                           static_cast<std::int64_t>(Element<T>::dtype),
                           static_cast<std::int64_t>(p.dtype));
  if (p.heads < 1) return Status::invalid("packing.heads", "at least", 1, p.heads);
  if (p.width < 1) return Status::invalid("packing.width", "at least", 1, p.width);
  if (p.rest < 1) return Status::invalid("packing.rest", "at least", 1, p.rest);
  if (p.columns() > kLargest)
    return Status::invalid("packing.columns()", "at most", kLargest, p.columns());
  if (args.x.extent(0) < 0 || args.x.extent(0) > kLargest)
    return Status::invalid("x.extent(0)", "from 0 to", kLargest, args.x.extent(0));
  if (args.x.extent(1) != p.rest + p.width)
    return Status::invalid("x.extent(1)", "equal to packing.rest + packing.width", p.rest + p.width,
                           args.x.extent(1));
  if (args.basis_begin < 0 || args.basis_begin > p.rest)
    return Status::invalid("basis_begin", "from 0 to packing.rest", p.rest, args.basis_begin);
  if (args.out.extent(0) != args.x.extent(0))
    return Status::invalid("out.extent(0)", "equal to x.extent(0)", args.x.extent(0),
                           args.out.extent(0));
  if (args.out.extent(1) != p.heads)
    return Status::invalid("out.extent(1)", "equal to packing.heads", p.heads, args.out.extent(1));
  if (args.out.extent(2) != p.width)
    return Status::invalid("out.extent(2)", "equal to packing.width", p.width, args.out.extent(2));
  if (args.x.stride(1) != 1) return Status::invalid("x.stride(1)", "equal to", 1, args.x.stride(1));
  if (args.out.stride(2) != 1)
    return Status::invalid("out.stride(2)", "equal to", 1, args.out.stride(2));
  if (args.x.stride(0) < args.x.extent(1))
    return Status::invalid("x.stride(0)", "at least x.extent(1)", args.x.extent(1),
                           args.x.stride(0));
  const std::int64_t tokens = args.out.extent(0);
  if (!detail::keeps_rows_apart(tokens, p.heads, p.width, args.out.stride(0), args.out.stride(1)))
    return Status::invalid("out.stride(1)", "strides that keep the rows of out apart, at least",
                           p.width, args.out.stride(1));
  if (tokens == 0) return {};
  if (args.x.data == nullptr) return Status::invalid("x.data", "not null, unlike", 0, 0);
  if (args.coefficients == nullptr)
    return Status::invalid("coefficients", "not null, unlike", 0, 0);
  if (args.out.data == nullptr) return Status::invalid("out.data", "not null, unlike", 0, 0);
  if (size_of(Element<T>::dtype) == 4) return {};

  // The 16-bit kernels move 16 bytes at a time.
  if (p.width % 8 != 0) return Status::invalid("packing.width", "a multiple of", 8, p.width);
  if (p.rest % 8 != 0) return Status::invalid("packing.rest", "a multiple of", 8, p.rest);
  if (args.basis_begin % 8 != 0)
    return Status::invalid("basis_begin", "a multiple of", 8, args.basis_begin);
  if (args.x.stride(0) % 8 != 0)
    return Status::invalid("x.stride(0)", "a multiple of", 8, args.x.stride(0));
  if (args.out.stride(0) % 8 != 0)
    return Status::invalid("out.stride(0)", "a multiple of", 8, args.out.stride(0));
  if (args.out.stride(1) % 8 != 0)
    return Status::invalid("out.stride(1)", "a multiple of", 8, args.out.stride(1));
  if (detail::misalignment(args.x.data, 16))
    return Status::invalid("x.data modulo 16", "equal to", 0,
                           detail::misalignment(args.x.data, 16));
  if (detail::misalignment(args.out.data, 16))
    return Status::invalid("out.data modulo 16", "equal to", 0,
                           detail::misalignment(args.out.data, 16));
  if (detail::misalignment(args.coefficients, 128))
    return Status::invalid("coefficients modulo 128", "equal to", 0,
                           detail::misalignment(args.coefficients, 128));
  if (args.bias != nullptr && detail::misalignment(args.bias, 16))
    return Status::invalid("bias modulo 16", "equal to", 0, detail::misalignment(args.bias, 16));
  return {};
}

}  // namespace bda::inline v0::cuda

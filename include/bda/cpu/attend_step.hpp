#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cpu/attend.hpp"
#include "bda/cpu/masked_softmax.hpp"
#include "bda/cpu/workspace.hpp"

/// The attention step of the CPU backend: the library's own, and the form an engine's has.
namespace bda::inline v0::cpu {

/// What a step gets: queries and keys are normed and rotated already. C is the compute type, T what
/// keys and values are stored as. Views have unit stride in the last dimension; while a workspace
/// is measured they have extents but no data.
template <class C, class T>
struct AttendArguments {
  TensorView<const C, 4> q{};  // [batch, queries, heads, qk_dim + rope_dim]
  /// [batch, keys, kv_heads, qk_dim + rope_dim] and [batch, keys, kv_heads, v_dim]: those of the
  /// new tokens where the step brings its cache, else all.
  TensorView<const T, 4> k{}, v{};
  TensorView<C, 4> out{};  // [batch, queries, heads, v_dim]
  ScoreFunction<C> score{};
  const double* sinks = nullptr;  // [heads], or null
  std::int64_t query_block = 64;
  int threads = 1;
};

/// The library's own step. One that brings a cache (see attention/step_cache.hpp) has
///   workspace_size(args, const Cache*) and run(args, Cache*, workspace)
/// in place of these, with null for a run without a cache. The workspace is aligned to 64 bytes; a
/// step that fails leaves the cache's length alone.
struct BuiltInAttend {
  /// Bytes that `run` needs, for any data.
  template <class C, class T>
  static std::size_t workspace_size(const AttendArguments<C, T>& args) {
    return worker_bytes(args) * static_cast<std::size_t>(args.threads);
  }

  template <class C, class T>
  static Status run(const AttendArguments<C, T>& args, std::span<std::byte> workspace) {
    const std::size_t bytes = worker_bytes(args);
    attend<C, T>(
        args.q, args.k, args.v, args.out, args.score, args.sinks, args.query_block,
        [&](std::int64_t worker) {
          Arena arena(workspace.subspan(static_cast<std::size_t>(worker) * bytes, bytes));
          return scratch(args, arena);
        },
        args.threads);
    return {};
  }

 private:
  template <class C, class T>
  static AttendScratch<C, T> scratch(const AttendArguments<C, T>& args, Arena& arena) {
    return {arena, std::min(args.query_block, args.q.extent(1)), args.k.extent(1), args.k.extent(3),
            args.v.extent(3)};
  }
  template <class C, class T>
  static std::size_t worker_bytes(const AttendArguments<C, T>& args) {
    Arena measured;
    scratch(args, measured);
    return measured.required();
  }
};

}  // namespace bda::inline v0::cpu

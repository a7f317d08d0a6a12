#pragma once

#include <cstddef>
#include <cstdint>

#include "bda/core/status.hpp"

/// What the entry points check alike.
namespace bda::inline v0::cuda::detail {

/// 0 where `pointer` is aligned to `bytes`.
inline std::int64_t misalignment(const void* pointer, std::uintptr_t bytes) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pointer) % bytes);
}

/// Whether no two of the rows [tokens, heads] of `row` elements share one: tokens outside heads or
/// heads outside tokens.
constexpr bool keeps_rows_apart(std::int64_t tokens, std::int64_t heads, std::int64_t row,
                                std::int64_t token_stride, std::int64_t head_stride) {
  const bool token_major =
      head_stride >= row && (tokens < 2 || token_stride >= (heads - 1) * head_stride + row);
  const bool head_major =
      token_stride >= row && (heads < 2 || head_stride >= (tokens - 1) * token_stride + row);
  return token_major || head_major;
}

/// Whether `workspace` holds the `needed` bytes.
inline Status check_workspace(std::size_t needed, const void* workspace, std::size_t bytes) {
  if (bytes >= needed && (needed == 0 || workspace != nullptr)) return {};
  return Status::error(Status::Code::kWorkspaceTooSmall, "workspace_bytes",
                       "at least workspace_size", static_cast<std::int64_t>(needed),
                       static_cast<std::int64_t>(bytes));
}

/// The start of a layer's workspace, and of every part of it.
constexpr std::size_t kPartAlignment = 256;

/// Bytes that a part of `bytes` takes up.
constexpr std::size_t part_size(std::size_t bytes) {
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

/// The same of a workspace that has parts.
inline Status check_parted_workspace(std::size_t needed, const void* workspace, std::size_t bytes) {
  if (Status s = check_workspace(needed, workspace, bytes); !s.ok()) return s;
  if (const std::int64_t rest = misalignment(workspace, kPartAlignment); rest != 0)
    return Status::invalid("workspace.data()", "a multiple of",
                           static_cast<std::int64_t>(kPartAlignment), rest);
  return {};
}

}  // namespace bda::inline v0::cuda::detail

#pragma once

#include <array>
#include <cstdint>

#include "bda/core/dtype.hpp"
#include "bda/core/status.hpp"
#include "bda/cuda/kv_layout/layout.hpp"
#include "bda/cuda/projection/config.hpp"

/// Which kernel writes keys and values: pure host code, tested without a GPU.
namespace bda::inline v0::cuda {

/// What the choice needs to know of the key or the value.
struct KvSideShape {
  std::int64_t width = 0;  // without the rope part; 0: this side is not wanted
  std::int64_t basis_begin = 0;
  bool bias = false;
  KvElement element = KvElement::kSame;
  bool paged = false;
};

struct AttentionReadyShape {
  DType dtype = DType::kF16;
  std::int64_t tokens = 0;
  std::int64_t kv_dim = 0;
  std::int64_t heads = 0;
  std::int64_t rope_width = 0;
  KvSideShape key, value;
};

enum class AttentionReadyKernel {
  kSm90Resident,      // one launch, width 128 over 384 rest channels, sm_90a
  kProjectThenPlace,  // a projection a side by `pick`, through the workspace where its kernels
                      // cannot write the layout, and a kernel that moves rows where they belong
};

[[nodiscard]] constexpr const char* name_of(AttentionReadyKernel kernel) {
  constexpr std::array names{"sm90_resident", "project_then_place"};
  return names[static_cast<std::size_t>(kernel)];
}

/// How sm90_resident stores.
enum class KvStore {
  kTensor,  // the copy engine's boxes: any strides, the type of the latent
  kRows,    // 16 bytes a thread, a row at a time: pages and e4m3 too
};

[[nodiscard]] constexpr const char* name_of(KvStore store) {
  return store == KvStore::kTensor ? "tensor" : "rows";
}

/// The choice, reported to the caller; hand one to `AttentionReadyArguments::force` to overrule it.
struct AttentionReadyConfig {
  AttentionReadyKernel kernel = AttentionReadyKernel::kProjectThenPlace;
  KvStore store = KvStore::kRows;
  int tile_tokens = 0;  // of sm90_resident
  int tile_columns = 0;
  const char* why = "";  // a literal
};

namespace detail {

/// Why sm90_resident cannot compute `shape`: ok, or what does not fit.
constexpr Status resident_fits(const AttentionReadyShape& shape, const DeviceInfo& device) {
  const auto unsupported = [](const char* what, const char* rule, std::int64_t want,
                              std::int64_t got) {
    return Status::error(Status::Code::kUnsupported, what, rule, want, got);
  };
  if (!device.wgmma)
    return unsupported("compute capability", "9.0 with code built for sm_90a", 9, device.major);
  if (shape.dtype != DType::kF16 && shape.dtype != DType::kBF16)
    return unsupported("bytes of an element", "2 (fp16 or bf16)", 2, size_of(shape.dtype));
  for (const KvSideShape* side : {&shape.key, &shape.value}) {
    if (side->width == 0) continue;
    if (side->width != 128)
      return unsupported("packing.width", "128 (sm90_resident)", 128, side->width);
    if (shape.kv_dim != 512)
      return unsupported("latent.extent(1)", "512 (sm90_resident)", 512, shape.kv_dim);
    if (side->basis_begin % 64 != 0)
      return unsupported("basis_begin", "a multiple of (sm90_resident)", 64, side->basis_begin);
    if (side->bias) return unsupported("bias", "null (sm90_resident)", 0, 1);
  }
  if (shape.key.width > 0 && shape.value.width > 0 && shape.key.element != shape.value.element)
    return unsupported("value.out.element", "equal to key.out.element (sm90_resident)",
                       static_cast<std::int64_t>(shape.key.element),
                       static_cast<std::int64_t>(shape.value.element));
  if (shape.rope_width > 64)
    return unsupported("rope.extent(1)", "at most (sm90_resident)", 64, shape.rope_width);
  if (shape.key.element == KvElement::kE4m3 && shape.rope_width % 16 != 0)
    return unsupported("rope.extent(1)", "for e4m3 a multiple of (sm90_resident)", 16,
                       shape.rope_width);
  return {};
}

constexpr bool needs_rows(const AttentionReadyShape& shape) {
  for (const KvSideShape* side : {&shape.key, &shape.value})
    if (side->width > 0 && (side->paged || side->element == KvElement::kE4m3)) return true;
  return false;
}

}  // namespace detail

/// Whether `config` can compute `shape` on `device`; the Status names what does not fit.
[[nodiscard]] constexpr Status validate(const AttentionReadyConfig& config,
                                        const AttentionReadyShape& shape,
                                        const DeviceInfo& device) {
  if (config.kernel == AttentionReadyKernel::kSm90Resident) {
    if (Status fits = detail::resident_fits(shape, device); !fits.ok()) return fits;
    if (config.tile_tokens != 128)
      return Status::error(Status::Code::kUnsupported, "config.tile_tokens", "this kernel's tile",
                           128, config.tile_tokens);
    if (config.tile_columns != 128)
      return Status::error(Status::Code::kUnsupported, "config.tile_columns", "this kernel's tile",
                           128, config.tile_columns);
    if (config.store == KvStore::kTensor && detail::needs_rows(shape))
      return Status::error(
          Status::Code::kUnsupported, "config.store", "rows (as KvStore) for pages and e4m3",
          static_cast<std::int64_t>(KvStore::kRows), static_cast<std::int64_t>(config.store));
    return {};
  }
  if (shape.dtype != DType::kF32 && device.major < 8)
    return Status::error(Status::Code::kUnsupported, "compute capability",
                         "at least 8 for fp16 and bf16", 8, device.major);
  return {};
}

/// The fastest way to compute `shape` on `device`. Assumes checked arguments; the result passes
/// `validate` whenever the device is of compute capability 8.0 or more, or the type fp32.
[[nodiscard]] constexpr AttentionReadyConfig pick(const AttentionReadyShape& shape,
                                                  const DeviceInfo& device) {
  if (Status fits = detail::resident_fits(shape, device); !fits.ok())  // why: what does not fit
    return {AttentionReadyKernel::kProjectThenPlace, KvStore::kRows, 0, 0, fits.argument()};
  if (detail::needs_rows(shape))
    return {AttentionReadyKernel::kSm90Resident, KvStore::kRows, 128, 128,
            "one launch; pages or e4m3: stored row by row"};
  return {AttentionReadyKernel::kSm90Resident, KvStore::kTensor, 128, 128,
          "one launch; plain strides: stored by the copy engine"};
}

}  // namespace bda::inline v0::cuda

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bda/checkpoint/json.hpp"
#include "bda/core/dtype.hpp"
#include "bda/preparation/options.hpp"

namespace bda::inline v0::checkpoint {

/// What a conversion is doing: `done` of `total` steps of a stage.
struct ConversionProgress {
  std::string_view stage;
  std::int64_t done = 0, total = 0;
};

struct ConversionOptions {
  /// A file that describes the attention of a family that the library does not know
  /// (families/mapped.hpp); empty for none.
  std::filesystem::path map;
  /// Unset: every side of every module that can be decomposed exactly. A module with none stays as
  /// it is. Set: these sides of all modules, and an error where one cannot.
  std::optional<Sides> sides;
  std::optional<BasisStrategy> basis;  // unset: as `prepare` chooses
  Rounding rounding = Rounding::kAware;
  /// What the attention is stored in. Unset: what most values of the module were stored in (bf16
  /// for eight-bit ones, which hold their values together with scales).
  std::optional<DType> dtype;
  /// Reads the result again and compares what it computes with the original.
  bool verify = false;
  int threads = 1;
  std::uint64_t shard_bytes = std::uint64_t{4} << 30;
  std::function<void(const ConversionProgress&)> progress;
};

/// One side of a module, compared on random input (see verify.hpp): relative error of the result,
/// and what rounding to the storage type makes one expect.
struct SideVerification {
  double error = 0, expected = 0;
};

/// What became of one attention module.
struct AttentionConversion {
  std::string name;
  /// Empty where the module stays as it is; then `why_not` says why.
  std::optional<DType> dtype;
  PreparationReport preparation;
  std::string why_not_qk, why_not_vo;  // where a side is not exact
  std::int64_t bytes_before = 0;       // of the tensors it replaces, as stored
  std::int64_t bytes_after = 0;
  double seconds = 0;
  std::optional<SideVerification> verified_qk, verified_vo;
};

struct ConversionReport {
  std::vector<AttentionConversion> attention;  // in the family's order
  std::int64_t tensors_copied = 0, bytes_copied = 0;
  std::int64_t files_copied = 0;  // beside tensors
  std::int64_t shards = 0;
  double seconds = 0;

  [[nodiscard]] std::int64_t bytes_before() const {
    return sum(&AttentionConversion::bytes_before);
  }
  [[nodiscard]] std::int64_t bytes_after() const { return sum(&AttentionConversion::bytes_after); }

 private:
  [[nodiscard]] std::int64_t sum(std::int64_t AttentionConversion::*field) const {
    std::int64_t total = 0;
    for (const AttentionConversion& a : attention) total += a.*field;
    return total;
  }
};

namespace detail {

inline Json json_of(const std::optional<DecompositionReport>& side, const std::string& why_not,
                    const std::optional<SideVerification>& verified) {
  if (!side) return why_not.empty() ? Json(nullptr) : Json({{"not_exact", why_not}});
  Json json = {{"residual_mean", side->mean_residual()},
               {"residual_max", side->max_residual()},
               {"alpha_max", side->max_alpha()},
               {"coefficient_max", side->max_coefficient()}};
  if (verified) json["verified"] = {{"error", verified->error}, {"expected", verified->expected}};
  return json;
}

}  // namespace detail

/// The report as JSON, for scripts.
[[nodiscard]] inline Json json_of(const ConversionReport& report) {
  Json modules = Json::array();
  for (const AttentionConversion& a : report.attention)
    modules.push_back({{"name", a.name},
                       {"dtype", a.dtype ? Json(name_of(*a.dtype)) : Json(nullptr)},
                       {"basis", a.preparation.basis},
                       {"latent", name_of(a.preparation.latent)},
                       {"qk", detail::json_of(a.preparation.qk, a.why_not_qk, a.verified_qk)},
                       {"vo", detail::json_of(a.preparation.vo, a.why_not_vo, a.verified_vo)},
                       {"bytes_before", a.bytes_before},
                       {"bytes_after", a.bytes_after},
                       {"seconds", a.seconds}});
  return {{"attention", modules},
          {"attention_bytes_before", report.bytes_before()},
          {"attention_bytes_after", report.bytes_after()},
          {"tensors_copied", report.tensors_copied},
          {"bytes_copied", report.bytes_copied},
          {"files_copied", report.files_copied},
          {"shards", report.shards},
          {"seconds", report.seconds}};
}

}  // namespace bda::inline v0::checkpoint

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bda/decomposition/basis_strategy.hpp"
#include "bda/decomposition/report.hpp"
#include "bda/decomposition/rounding.hpp"
#include "bda/model/attention_weights.hpp"
#include "bda/model/latent_change.hpp"

namespace bda::inline v0 {

/// Which products of a layer are decomposed: Wq Wkᵀ (QK) and Wv Wo (VO), each by itself.
struct Sides {
  bool qk = true, vo = true;
};

/// What becomes of key and value biases.
enum class BiasForm {
  /// `K' += bk R⁻¹` and `V' += bv Rv⁻¹`, a constant per head: exact for any score function.
  kGeneral,
  /// bk is dropped and `bo' = bo + sum bv Wo`: nothing to add at run time, exact where the
  /// attention rows sum to one and the logits are not capped.
  kFolded
};

struct PreparationOptions {
  Sides sides;
  /// Unset: latent_rotation where the layer has a latent (MLA), joint_pivot elsewhere.
  std::optional<BasisStrategy> basis;
  Rounding rounding = Rounding::kAware;
  BiasForm bias_form = BiasForm::kGeneral;
  /// Decompose a side although the result is not the same attention. For experiments only.
  bool allow_inexact = false;
  int threads = 1;
};

struct PreparationReport {
  std::string basis;                          // the strategy's name
  LatentChange latent = LatentChange::kNone;  // folded into what makes the latent
  std::optional<DecompositionReport> qk, vo;  // one entry a K/V head
  std::int64_t bytes_before = 0;              // the layer's tensors, plain, in the storage type
  std::int64_t bytes_after = 0;

  [[nodiscard]] double max_alpha() const {
    return std::max(qk ? qk->max_alpha() : 0.0, vo ? vo->max_alpha() : 0.0);
  }
};

/// A layer ready to run and to store in T, with the record of its preparation.
template <class T>
struct PreparedLayer {
  AttentionWeights<T> weights;
  PreparationReport report;
};

}  // namespace bda::inline v0

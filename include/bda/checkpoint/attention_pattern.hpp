#pragma once

#include <cstdint>

namespace bda::inline v0::checkpoint {

/// Which keys a module's queries see in its model, and what joins its logits: what a caller sets in
/// `AttentionMask`. None of it bears on the decomposition, which leaves every score as it is.
struct AttentionPattern {
  bool causal = true;
  std::int64_t window = 0;     // of a sliding window, 0 for none
  bool cross = false;          // keys and values come from the encoder's output
  bool position_bias = false;  // a learned bias per head and distance is added to the logits (T5)
};

}  // namespace bda::inline v0::checkpoint

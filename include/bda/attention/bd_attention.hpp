#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "bda/attention/arguments.hpp"
#include "bda/attention/check_arguments.hpp"
#include "bda/core/status.hpp"
#include "bda/model/attention_weights.hpp"

namespace bda::inline v0 {

/// One attention layer, plain or basis-decomposed: what a user holds.
///
/// `BDAttention<CpuBackend<float>> layer(weights);` takes original and decomposed weights alike; a
/// projection with a basis runs as `c_S + c_rest C`, one without as the plain product.
///
/// `run` works in the caller's workspace, of at least `workspace_size` bytes for the same
/// arguments; it allocates nothing (but see the backend) and never synchronises. It checks
/// everything before it writes anything, and is safe to call from several threads at once with
/// different workspaces and caches. `out` may be `x` itself.
///
/// A query that sees no key gets zeros from every head, so its row of `out` is `o_bias`.
template <class Backend>
class BDAttention {
 public:
  using Weights = typename Backend::Weights;
  using Compute = typename Backend::Compute;
  using Options = typename Backend::Options;
  using Cache = typename Backend::Cache;
  using Stream = typename Backend::Stream;  // where the work is queued; on the CPU nothing
  using Arguments = AttentionArguments<Compute>;

  /// Throws `Error` where the weights do not fit their config (see `validate`).
  explicit BDAttention(Weights weights, Options options = {})
      : backend_(validated(std::move(weights)), std::move(options)) {}

  [[nodiscard]] const Weights& weights() const { return backend_.weights(); }
  [[nodiscard]] const AttentionConfig& config() const { return weights().config; }
  [[nodiscard]] const Options& options() const { return backend_.options(); }

  /// An empty cache for `capacity` tokens of each of `batch` sequences, for this layer alone.
  /// Throws `Error` for the latent form where the layer is not MLA, or normalises its keys.
  [[nodiscard]] Cache make_cache(std::int64_t batch, std::int64_t capacity,
                                 CacheForm form = CacheForm::kMaterialized) const {
    return backend_.make_cache(batch, capacity, form);
  }

  /// Bytes `run` needs; linear in the tokens. 0 for arguments that `run` refuses.
  [[nodiscard]] std::size_t workspace_size(const Arguments& args) const {
    return check_arguments(weights(), args, 0).ok() ? backend_.workspace_size(args) : 0;
  }
  [[nodiscard]] std::size_t workspace_size(const Arguments& args, const Cache& cache) const {
    return check(args, cache).ok() ? backend_.workspace_size(args, cache) : 0;
  }

  /// A whole sequence at once.
  [[nodiscard]] Status run(const Arguments& args, std::span<std::byte> workspace,
                           Stream stream = {}) const {
    if (Status s = check_arguments(weights(), args, 0); !s) return s;
    return backend_.run(args, workspace, stream);
  }

  /// Appends the new tokens to the cache, then attends over all it holds. On an error the cache is
  /// as it was.
  [[nodiscard]] Status run(const Arguments& args, Cache& cache, std::span<std::byte> workspace,
                           Stream stream = {}) const {
    if (Status s = check(args, cache); !s) return s;
    return backend_.run(args, cache, workspace, stream);
  }

 private:
  static Weights validated(Weights weights) {
    validate(weights);
    return weights;
  }

  Status check(const Arguments& args, const Cache& cache) const {
    if (Status s = check_arguments(weights(), args, cache.length()); !s) return s;
    return backend_.check(args, cache);
  }

  Backend backend_;
};

}  // namespace bda::inline v0

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bda/checkpoint/transformer.hpp"

namespace perplexity {

namespace checkpoint = bda::checkpoint;

/// The language model of language_model.hpp wholly on the current GPU: weights and products in T
/// (Eigen::half or Eigen::bfloat16), attention by BDAttention<CudaBackend<A>>, cast to and from T
/// where A is another type, the residual stream, norms and losses in fp32. Compiled where there is
/// a CUDA toolkit, for A = T and for half in bfloat16.
template <class T, class A = T>
class CudaLanguageModel {
 public:
  /// Copies `weights`; their own attention weights are not used. Throws bda::Error where there is
  /// no device, and for a layer with experts.
  CudaLanguageModel(const checkpoint::TransformerWeights<T>& weights,
                    std::vector<bda::AttentionWeights<A>> attention);
  ~CudaLanguageModel();

  /// As in LanguageModel: -log p of each token but the first of each sequence, [sequences,
  /// length - 1].
  void token_losses(std::span<const std::int64_t> tokens, std::int64_t length,
                    std::span<double> losses) const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace perplexity

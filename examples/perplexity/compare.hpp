#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "bda/core/parallel.hpp"
#include "compare_models.hpp"
#include "cuda_model.hpp"
#include "evaluation_set.hpp"
#include "language_model.hpp"
#include "loading.hpp"
#include "model_size.hpp"
#include "preparation.hpp"
#include "progress_bar.hpp"

namespace perplexity {

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The loss of every predicted token, [windows, length - 1]. Each batch of windows is computed by
/// one thread; which windows share a batch does not depend on `threads`, so neither do the results.
template <std::int64_t kBatch, class Model>
std::vector<double> token_losses(const Model& model, const bda::Matrix<std::int64_t>& tokens,
                                 int threads, const std::string& label) {
  const std::int64_t windows = tokens.rows, length = tokens.cols;
  std::vector<double> losses(static_cast<std::size_t>(windows * (length - 1)));
  ProgressBar progress(label, (windows + kBatch - 1) / kBatch);
  bda::parallel_for((windows + kBatch - 1) / kBatch, threads, [&](std::int64_t batch) {
    const std::int64_t first = batch * kBatch, count = std::min(kBatch, windows - first);
    const auto part = [&](auto& values, std::int64_t width) {
      return std::span(values).subspan(static_cast<std::size_t>(first * width),
                                       static_cast<std::size_t>(count * width));
    };
    model.token_losses(part(tokens.values, length), length, part(losses, length - 1));
    progress.advance();
  });
  return losses;
}

/// The same of the checkpoint with `attention` in place of its own, where the command line says.
template <class T, class A>
std::vector<double> token_losses(const Arguments& args,
                                 const checkpoint::TransformerWeights<T>& weights,
                                 std::vector<bda::AttentionWeights<A>> attention,
                                 const bda::Matrix<std::int64_t>& tokens,
                                 const std::string& label) {
  if (args.device == Device::kCuda) {
    if constexpr (sizeof(T) == 2) {
#ifdef PERPLEXITY_CUDA
      return token_losses<8>(CudaLanguageModel<T, A>(weights, std::move(attention)), tokens, 1,
                             label);
#else
      throw bda::Error("--device", "cpu, as this program was built without CUDA", "cuda");
#endif
    } else {
      throw bda::Error("--dtype with --device cuda", "fp16 or bf16",
                       std::string(name_of(bda::StorageTraits<T>::dtype)));
    }
  }
  if constexpr (std::is_same_v<T, A>)
    return token_losses<2>(LanguageModel<T>(weights, std::move(attention)), tokens, args.threads,
                           label);
  std::abort();  // `compare` lets only the GPU have two types
}

inline double perplexity_of(const std::vector<double>& losses) {
  const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
  return std::exp(sum / static_cast<double>(losses.size()));
}

/// NaN if any loss is.
inline double max_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
    if (std::isnan(largest)) break;
  }
  return largest;
}

inline SideSummary summary_of(const bda::DecompositionReport& side) {
  SideSummary s{.residual_mean = side.mean_residual(),
                .residual_max = side.max_residual(),
                .mean_squared_error = side.mean_squared_error(),
                .alpha_max = side.max_alpha(),
                .coefficient_max = side.max_coefficient()};
  for (const bda::HeadReport& head : side.heads) s.alpha_mean += head.alpha;
  s.alpha_mean /= static_cast<double>(side.heads.size());
  return s;
}

inline LayerSummary summary_of(const bda::PreparationReport& layer) {
  LayerSummary s;
  if (layer.qk) s.qk = summary_of(*layer.qk);
  if (layer.vo) s.vo = summary_of(*layer.vo);
  return s;
}

/// What can be decomposed exactly in every layer.
template <class T>
bda::Sides exact_sides(const checkpoint::TransformerWeights<T>& weights) {
  bda::Sides sides;
  for (const auto& layer : weights.layers) {
    if (bda::why_qk_is_inexact(layer.attention)) sides.qk = false;
    if (bda::why_vo_is_inexact(layer.attention)) sides.vo = false;
  }
  return sides;
}

template <class A, class T>
std::vector<bda::AttentionWeights<A>> original_attention(
    const checkpoint::TransformerWeights<T>& weights) {
  std::vector<bda::AttentionWeights<A>> attention;
  for (const auto& layer : weights.layers) attention.push_back(bda::convert<A>(layer.attention));
  return attention;
}

template <class A, class T>
std::vector<bda::PreparedLayer<A>> decompose(const checkpoint::TransformerWeights<T>& weights,
                                             const bda::PreparationOptions& options) {
  std::vector<bda::PreparedLayer<A>> prepared;
  ProgressBar progress("decomposing layers", static_cast<std::int64_t>(weights.layers.size()));
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    try {
      using Source = bda_project::Source<A>;  // holds every T exactly
      prepared.push_back(
          bda::prepare<A>(bda::convert<Source>(weights.layers[i].attention), options));
    } catch (const bda::Error& error) {
      throw bda::Error("layer " + std::to_string(i) + ", " + error.name(), error.expected(),
                       error.given());
    }
    progress.advance();
  }
  return prepared;
}

/// What both kinds of run have in common: the model in T and what it is measured on.
template <class A, class T>
Comparison describe(const Arguments& args, const checkpoint::TransformerWeights<T>& weights,
                    const EvaluationSet& set) {
  Comparison result;
  result.model = std::filesystem::canonical(args.model).filename();
  result.evaluation = args.evaluation.filename();
  result.model_type = weights.model_type;
  result.dtype = bda::StorageTraits<T>::dtype;
  result.attention_dtype = bda::StorageTraits<A>::dtype;
  result.rounding = name_of(args.rounding);
  result.device = name_of(args.device);
  result.windows = set.tokens.rows;
  result.tokens_per_window = set.tokens.cols;
  return result;
}

template <class A, class T>
void measure_original(const Arguments& args, const checkpoint::TransformerWeights<T>& weights,
                      const EvaluationSet& set, Comparison& result) {
  const Stopwatch time;
  const std::vector<double> losses =
      token_losses(args, weights, original_attention<A>(weights), set.tokens, "original  ");
  result.seconds_original = time.seconds();
  result.perplexity_original = perplexity_of(losses);
  if (set.reference_losses.empty()) return;
  result.perplexity_reference = perplexity_of(set.reference_losses.values);
  result.max_token_loss_error = max_difference(losses, set.reference_losses.values);
}

template <class T, class A>
void measure_decomposed(const Arguments& args, const checkpoint::TransformerWeights<T>& weights,
                        std::vector<bda::AttentionWeights<A>> attention, const EvaluationSet& set,
                        Comparison& result) {
  const Stopwatch time;
  result.perplexity_bd =
      perplexity_of(token_losses(args, weights, std::move(attention), set.tokens, "decomposed"));
  result.seconds_bd = time.seconds();
}

template <class T>
std::int64_t attention_bytes(const checkpoint::TransformerWeights<T>& weights) {
  std::int64_t total = 0;
  for (const auto& layer : weights.layers) total += layer.attention.bytes();
  return total;
}

/// A checkpoint that is decomposed already, as it is, and the one it was made from where the
/// command line names it.
template <class A, class T>
Comparison compare_converted(const Arguments& args, const checkpoint::Checkpoint& converted,
                             const checkpoint::TransformerWeights<T>& weights) {
  if (args.basis || args.sides || args.force_inexact)
    throw bda::Error(args.model.string(),
                     "a checkpoint that is not converted, with --basis, --sides or --force-inexact",
                     "a converted one");
  const EvaluationSet set = read_evaluation_set(args.evaluation, args.windows, weights.vocab_size(),
                                                weights.max_positions);
  Comparison result = describe<A>(args, weights, set);
  result.rounding = "converted";
  bda::Sides sides{.qk = false, .vo = false};
  std::set<std::string> bases;
  for (const std::optional<checkpoint::BdAttention>& module : converted.bd) {
    if (!module) continue;
    bases.insert(module->basis);
    sides.qk |= module->qk.has_value();
    sides.vo |= module->vo.has_value();
  }
  for (const std::string& basis : bases) result.basis += (result.basis.empty() ? "" : ",") + basis;
  result.sides = name_of(sides);
  result.model_bytes.bd = bytes_of(weights);
  result.attention_bytes.bd = attention_bytes(weights);
  if (args.original) {
    const checkpoint::Checkpoint original = checkpoint::open_checkpoint(*args.original);
    if (!original.bd.empty())
      throw bda::Error("--original", "a checkpoint that is not converted", "a converted one");
    const auto plain = checkpoint::load_transformer<T>(original);
    result.model_bytes.original = bytes_of(plain);
    result.attention_bytes.original = attention_bytes(plain);
    measure_original<A>(args, plain, set, result);
  }
  measure_decomposed(args, weights, original_attention<A>(weights), set, result);
  return result;
}

/// A checkpoint as published, which is decomposed here.
template <class A, class T>
Comparison compare_published(const Arguments& args,
                             const checkpoint::TransformerWeights<T>& weights) {
  if (args.original)
    throw bda::Error("--original", "a converted MODEL_DIR to compare with",
                     "one that is decomposed here");
  const EvaluationSet set = read_evaluation_set(args.evaluation, args.windows, weights.vocab_size(),
                                                weights.max_positions);
  const bda::Sides exact = exact_sides(weights);
  bda::PreparationOptions options;
  options.sides = args.sides.value_or(args.force_inexact ? bda::Sides{} : exact);
  options.basis = args.basis;
  options.rounding = args.rounding;
  options.allow_inexact = args.force_inexact;
  options.threads = args.threads;

  Comparison result = describe<A>(args, weights, set);
  result.sides = name_of(options.sides);
  result.exact = (exact.qk || !options.sides.qk) && (exact.vo || !options.sides.vo);

  const Stopwatch prepare_time;
  std::vector<bda::PreparedLayer<A>> prepared = decompose<A>(weights, options);
  result.seconds_prepare = prepare_time.seconds();
  result.model_bytes.original = result.model_bytes.bd = bytes_of(weights);
  std::vector<bda::AttentionWeights<A>> decomposed;
  for (bda::PreparedLayer<A>& layer : prepared) {
    result.attention_bytes.original += layer.report.bytes_before;
    result.attention_bytes.bd += layer.report.bytes_after;
    result.layers.push_back(summary_of(layer.report));
    decomposed.push_back(std::move(layer.weights));
  }
  result.model_bytes.bd += result.attention_bytes.bd - result.attention_bytes.original;
  result.basis = prepared.front().report.basis;

  measure_original<A>(args, weights, set, result);
  measure_decomposed(args, weights, std::move(decomposed), set, result);
  return result;
}

/// With the attention layers' weights in A.
template <class A, class T>
Comparison compare_in(const Arguments& args, const checkpoint::Checkpoint& checkpoint,
                      const checkpoint::TransformerWeights<T>& weights) {
  return checkpoint.bd.empty() ? compare_published<A>(args, weights)
                               : compare_converted<A>(args, checkpoint, weights);
}

template <class T>
Comparison compare(const Arguments& args, const checkpoint::Checkpoint& checkpoint) {
  const auto weights = checkpoint::load_transformer<T>(checkpoint);
  constexpr bda::DType kOwn = bda::StorageTraits<T>::dtype;
#ifdef PERPLEXITY_CUDA
  if constexpr (std::is_same_v<T, Eigen::bfloat16>)
    if (args.device == Device::kCuda) {
      // Bases that are no rotations leave queries and keys too large for the 8 bits of bf16.
      const bool rotates =
          std::all_of(weights.layers.begin(), weights.layers.end(),
                      [](const auto& layer) { return layer.attention.latent.has_value(); });
      if (args.attention_dtype.value_or(rotates ? kOwn : bda::DType::kF16) == bda::DType::kF16)
        return compare_in<Eigen::half>(args, checkpoint, weights);
    }
#endif
  if (args.attention_dtype.value_or(kOwn) != kOwn)
    throw bda::Error("--attention-dtype", "as --dtype, or fp16 with --dtype bf16 --device cuda",
                     std::string(name_of(*args.attention_dtype)) + " with --dtype " +
                         std::string(name_of(kOwn)) + " --device " +
                         std::string(name_of(args.device)));
  return compare_in<T>(args, checkpoint, weights);
}

}  // namespace perplexity

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bda/decomposition/decompose_heads.hpp"
#include "bda/preparation/biases.hpp"
#include "bda/preparation/convert.hpp"
#include "bda/preparation/exactness.hpp"
#include "bda/preparation/factors.hpp"
#include "bda/preparation/latent_transform.hpp"
#include "bda/preparation/options.hpp"

namespace bda::inline v0 {

namespace detail {

/// The work of `prepare`, one step a method, in the order they run.
template <class T, class U>
class Preparation {
 public:
  Preparation(const AttentionWeights<U>& plain, const PreparationOptions& options)
      : plain_(plain), config_(plain.config), options_(options), part_(KeyPart::of(plain.config)) {
    if (options_.basis)
      strategy_ = *options_.basis;
    else if (plain.latent)
      strategy_ = LatentRotation{};
    else
      strategy_ = JointPivot{};
  }

  PreparedLayer<T> run() {
    validate(plain_, options_.threads);
    check_request();
    extract_factors();
    choose_basis();
    PreparedLayer<T> result;
    result.report.basis = name_of(strategy_);
    result.report.latent = transform_.change();
    AttentionWeights<T>& out = result.weights;
    start_from_plain(out);
    result.report.bytes_before = bytes_in_storage();
    if (options_.sides.qk) result.report.qk = decompose_qk(out);
    if (options_.sides.vo) result.report.vo = decompose_vo(out);
    result.report.bytes_after = out.bytes();
    return result;
  }

 private:
  using Mat = linalg::RowMatrix<double>;
  using Work = work_t<T>;
  using Head = HeadFactors<compute_t<U>>;

  /// What the biases of a side need to know of a head's decomposition.
  struct Solved {
    Mat basis;  // R
    std::int64_t rank;
  };

  void check_request() const {
    const Sides sides = options_.sides;
    if (plain_.k.decomposed() || plain_.k_rope.decomposed() || plain_.v.decomposed())
      throw Error("layer", "plain weights", "weights that are already decomposed");
    if (sides.qk && !options_.allow_inexact)
      if (const auto why = why_qk_is_inexact(plain_))
        throw Error("sides.qk", "a QK side that can be decomposed exactly", *why);
    if (sides.vo)
      if (const auto why = why_vo_is_inexact(plain_))
        throw Error("sides.vo", "a VO side that can be decomposed exactly", *why);
    if (sides.qk && config_.qk_dim == 0 && config_.shared_rope_key)
      throw Error("sides.qk", "a key of its own for each K/V head",
                  "one rotated key for all heads");
    if (sides.qk && config_.qk_dim == 0 && plain_.latent)
      throw Error("sides.qk", "a key that is computed from the latent",
                  "a rotated key, which is computed from the hidden state");
    if (std::holds_alternative<LatentRotation>(strategy_) && !plain_.latent)
      throw Error("basis",
                  "a strategy that leaves the channels in place (there is no latent to turn)",
                  std::string(LatentRotation::name));
    if (options_.bias_form == BiasForm::kFolded) {
      if (!plain_.sinks.empty())
        throw Error("bias_form", "general (attention sinks: rows do not sum to one)", "folded");
      if (sides.qk && !plain_.k.bias.empty() && config_.logit_softcap > 0)
        throw Error("bias_form", "general (the logits are capped)", "folded");
    }
  }

  [[nodiscard]] bool forced_rope() const { return config_.qk_dim == 0; }
  [[nodiscard]] const KvProjection<U>& plain_key() const {
    return forced_rope() ? plain_.k_rope : plain_.k;
  }

  void extract_factors() {
    if (options_.sides.qk) qk_ = qk_factors(plain_, plain_key().weight, part_, options_.threads);
    if (options_.sides.vo) vo_ = vo_factors(plain_, options_.threads);
    if (std::holds_alternative<LatentRotation>(strategy_)) {
      for (auto* side : {&qk_, &vo_})
        for (Head& head : *side) head.right = with_gain(std::move(head.right));
    }
  }

  /// diag(gain) W: the latent's norm without its gain commutes with rotations.
  [[nodiscard]] Mat with_gain(Mat weight) const {
    const std::vector<U>& gain = plain_.latent->kv_norm;
    for (std::size_t i = 0; i < gain.size(); ++i)
      weight.row(static_cast<Eigen::Index>(i)) *= static_cast<double>(gain[i]);
    return weight;
  }

  void choose_basis() {
    const SelectionOptions selection{StorageTraits<T>::dtype, options_.threads};
    const auto choose = [&](std::span<const Head> heads) {
      return select_basis(strategy_, heads, selection);
    };
    Basis qk, vo;
    if (const auto* rotation = std::get_if<LatentRotation>(&strategy_);
        rotation && options_.sides.qk && options_.sides.vo) {
      const SelectionHeads<compute_t<U>> usable_qk(qk_, options_.threads);
      const SelectionHeads<compute_t<U>> usable_vo(vo_, options_.threads);
      std::tie(qk, vo) = rotation->select_joint(usable_qk.heads(), usable_vo.heads(), selection);
    } else {
      if (options_.sides.qk) qk = choose(qk_);
      if (options_.sides.vo) vo = choose(vo_);
    }
    if (options_.sides.qk) qk_basis_ = qk.channels;
    if (options_.sides.vo) vo_basis_ = vo.channels;

    Mat& rotation = options_.sides.qk ? qk.rotation : vo.rotation;
    if (rotation.size() > 0)
      transform_ = LatentTransform::rotation(std::move(rotation));
    else if (plain_.latent)
      transform_ = LatentTransform::gather(qk_basis_ ? &*qk_basis_ : nullptr,
                                           vo_basis_ ? &*vo_basis_ : nullptr);
    if (transform_.identity()) return;
    for (auto* side : {&qk_, &vo_})
      parallel_for(static_cast<std::int64_t>(side->size()), options_.threads, [&](std::int64_t h) {
        Mat& right = (*side)[static_cast<std::size_t>(h)].right;
        right = transform_.applied_to(std::move(right));
      });
  }

  /// Everything the two sides will not replace, in the transformed latent's channels.
  void start_from_plain(AttentionWeights<T>& out) const {
    out = convert_except<T>(plain_, options_.sides.qk && !forced_rope(), options_.sides.vo,
                            options_.threads);
    if (transform_.identity()) return;
    out.latent = transform_.template upstream<T>(*plain_.latent);
    const auto transformed = [&](const Matrix<U>& weight, std::string_view name) {
      Mat w = linalg::map(weight).template cast<double>();
      if (transform_.rotates()) w = with_gain(std::move(w));
      return LatentTransform::stored<T>(transform_.applied_to(std::move(w)), name);
    };
    if (!options_.sides.qk && config_.qk_dim > 0)
      out.k.weight = transformed(plain_.k.weight, "k.weight");
    if (!options_.sides.vo) out.v.weight = transformed(plain_.v.weight, "v.weight");
  }

  [[nodiscard]] std::int64_t bytes_in_storage() const {
    return plain_.bytes() / static_cast<std::int64_t>(sizeof(U)) *
           static_cast<std::int64_t>(sizeof(T));
  }

  /// Decomposes the heads of a side, places their coefficients side by side in `projection`,
  /// [d - r, kv_heads, r], and hands each head's stored basis to place(head, basis). A head and its
  /// factors are let go as soon as they are placed: a layer in float is large.
  template <class Place>
  std::vector<Solved> decompose(std::vector<Head>& heads, const IndexSet& basis,
                                KvProjection<T>& projection, DecompositionReport& report,
                                const Place& place) const {
    check_basis(std::span<const Head>(heads), basis);
    const std::int64_t r = basis.size();
    projection.weight = Matrix<T>(basis.dim() - r, config_.kv_heads * r);
    projection.basis = basis;
    auto weight = linalg::map(projection.weight);
    std::vector<Solved> solved(heads.size());
    report.heads.resize(heads.size());
    parallel_for(config_.kv_heads, options_.threads, [&](std::int64_t g) {
      const auto i = static_cast<std::size_t>(g);
      auto done =
          decompose_head<Work>(heads[i], basis, StorageTraits<T>::dtype, options_.rounding, i);
      heads[i] = {};
      linalg::assign_converted(weight.middleCols(g * r, r), done.stored.coefficients);
      place(g, done.stored.basis);
      solved[i] = {std::move(done.solution.basis), done.solution.rank};
      report.heads[i] = done.report;
    });
    return solved;
  }

  DecompositionReport decompose_qk(AttentionWeights<T>& out) {
    KvProjection<T>& key = forced_rope() ? out.k_rope : out.k;
    auto q = linalg::map(out.q);
    const std::int64_t group = config_.group_size(), stride = config_.head_dim();
    DecompositionReport report;
    const std::vector<Solved> solved =
        decompose(qk_, *qk_basis_, key, report, [&](std::int64_t g, const auto& basis) {
          for (std::int64_t j = 0; j < group; ++j)
            linalg::assign_converted(
                q.middleCols((g * group + j) * stride + part_.offset, part_.width),
                basis.middleRows(j * config_.query_dim, config_.query_dim));
        });
    place_qk_biases(solved, key, out);
    return report;
  }

  DecompositionReport decompose_vo(AttentionWeights<T>& out) {
    auto o = linalg::map(out.o);
    const std::int64_t group = config_.group_size(), width = config_.v_dim;
    DecompositionReport report;
    const std::vector<Solved> solved =
        decompose(vo_, *vo_basis_, out.v, report, [&](std::int64_t g, const auto& basis) {
          for (std::int64_t j = 0; j < group; ++j)
            linalg::assign_transposed(o.middleRows((g * group + j) * width, width),
                                      basis.middleRows(j * config_.out_dim, config_.out_dim));
        });
    place_vo_biases(solved, out);
    return report;
  }

  void place_qk_biases(const std::vector<Solved>& solved, KvProjection<T>& key,
                       AttentionWeights<T>& out) const {
    const std::int64_t group = config_.group_size(), stride = config_.head_dim();
    Mat q_bias = Mat::Zero(config_.heads, stride);
    Mat constant = Mat::Zero(config_.kv_heads, part_.width);
    for (std::int64_t g = 0; g < config_.kv_heads; ++g) {
      const Solved& head = solved[static_cast<std::size_t>(g)];
      for (std::int64_t j = 0; j < group && !plain_.q_bias.empty(); ++j) {
        Mat bias = bias_row(plain_.q_bias, g * group + j, stride, 0, stride);
        auto part = bias.middleCols(part_.offset, part_.width);
        part = linalg::multiply_transposed(part, head.basis);
        q_bias.row(g * group + j) = bias;
      }
      if (!plain_key().bias.empty() && options_.bias_form == BiasForm::kGeneral) {
        const BiasSplit split =
            split_bias(bias_row(plain_key().bias, g, part_.width, 0, part_.width), head.basis);
        // What a rank-deficient key cannot carry adds the same to a query's every logit.
        if (!split.exact) require_plain_softmax("k.bias", g, head.rank);
        constant.row(g) = split.constant;
      }
    }
    if (!plain_.q_bias.empty()) out.q_bias = LatentTransform::stored<T>(q_bias, "q_bias").values;
    key.bias.clear();
    if (!plain_key().bias.empty() && options_.bias_form == BiasForm::kGeneral)
      key.bias = LatentTransform::stored<T>(constant, "k.bias").values;
  }

  void place_vo_biases(const std::vector<Solved>& solved, AttentionWeights<T>& out) const {
    if (plain_.v.bias.empty()) return;
    const auto plain_o = linalg::map(plain_.o);
    const std::int64_t group = config_.group_size(), width = config_.v_dim;
    const bool fold = options_.bias_form == BiasForm::kFolded;
    Mat o_bias = bias_row(plain_.o_bias, 0, 0, 0, config_.out_dim);
    Mat constant = Mat::Zero(config_.kv_heads, width);
    bool folded = false;
    for (std::int64_t g = 0; g < config_.kv_heads; ++g) {
      const Solved& head = solved[static_cast<std::size_t>(g)];
      Mat to_output = bias_row(plain_.v.bias, g, width, 0, width);
      if (!fold) {
        BiasSplit split = split_bias(to_output, head.basis);
        constant.row(g) = split.constant;
        if (split.exact) continue;
        // What a rank-deficient value cannot carry reaches the output as a constant.
        require_plain_softmax("v.bias", g, head.rank);
        to_output = std::move(split.lost);
      }
      for (std::int64_t j = 0; j < group; ++j)
        linalg::add_product(
            o_bias, to_output,
            Mat(plain_o.middleRows((g * group + j) * width, width).template cast<double>()));
      folded = true;
    }
    if (folded) out.o_bias = LatentTransform::stored<T>(o_bias, "o_bias").values;
    out.v.bias.clear();
    if (!fold) out.v.bias = LatentTransform::stored<T>(constant, "v.bias").values;
  }

  void require_plain_softmax(const char* name, std::int64_t head, std::int64_t rank) const {
    if (plain_.sinks.empty() && config_.logit_softcap == 0) return;
    throw Error(std::string(name) + " of head " + std::to_string(head),
                "a bias within the span of its head's " + std::to_string(rank) +
                    " independent channels (with sinks or a soft-cap nothing else is exact)",
                "one outside it");
  }

  const AttentionWeights<U>& plain_;
  const AttentionConfig& config_;
  const PreparationOptions& options_;
  KeyPart part_;
  BasisStrategy strategy_;
  std::vector<Head> qk_, vo_;
  std::optional<IndexSet> qk_basis_, vo_basis_;
  LatentTransform transform_;
};

}  // namespace detail

/// Turns one attention layer into its basis-decomposed form, stored in T: the same scores and the
/// same output from smaller key and value projections (BD paper, section 3.3). Works on multi-head,
/// grouped-query, cross- and multi-head latent attention; with a rotary part beside the nope part
/// only the latter is decomposed.
///
/// Throws `Error` where a tensor has the wrong shape or a value that is not finite, where a side
/// cannot be decomposed exactly (it says why, and what can be), where the basis cannot represent a
/// head, and where a value does not fit T.
template <class T, class U>
PreparedLayer<T> prepare(const AttentionWeights<U>& layer, const PreparationOptions& options = {}) {
  return detail::Preparation<T, U>(layer, options).run();
}

}  // namespace bda::inline v0

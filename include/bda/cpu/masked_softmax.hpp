#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "bda/attention/arguments.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/linalg/eigen.hpp"

/// From raw scores to attention weights.
namespace bda::inline v0::cpu {

/// How a layer turns q k^T of one head into attention weights.
template <class C>
struct ScoreFunction {
  C scale = 1;
  C softcap = 0;          // 0 for none
  bool has_sink = false;  // a logit that joins the sum and has no value
  C sink = 0;
  AttentionMask<C> mask;
  std::int64_t first_position = 0;  // of query 0
};

/// Keys [first, last) that some query of a block may see.
struct KeyRange {
  std::int64_t first, last;
  [[nodiscard]] std::int64_t size() const { return last - first; }
};

/// The keys of sequence `b` that queries [query, query + count) may see; maybe none.
template <class C>
KeyRange visible_keys(const AttentionMask<C>& mask, std::int64_t b, std::int64_t first_position,
                      std::int64_t query, std::int64_t count, std::int64_t keys) {
  KeyRange range{0, mask.key_lengths != nullptr ? mask.key_lengths[b] : keys};
  const std::int64_t position = first_position + query;
  if (mask.causal) range.last = std::min(range.last, position + count);
  if (mask.window > 0) range.first = std::max<std::int64_t>(0, position - mask.window + 1);
  range.last = std::max(range.first, range.last);
  return range;
}

/// scores [count, range.size()] of head `head` become exp(s - max); `sums[i]` is what divides row
/// i: their sum, and the sink's share. A row without a visible key becomes zeros, divided by 1.
/// The order is scale, softcap, bias (as in Gemma 2, and ALiBi and T5 have no cap).
template <class C>
void masked_exponentials(const ScoreFunction<C>& f, std::int64_t b, std::int64_t head,
                         std::int64_t query, std::int64_t count, KeyRange range,
                         MatrixView<C> scores, C* sums) {
  constexpr C kNone = -std::numeric_limits<C>::infinity();
  for (std::int64_t i = 0; i < count; ++i) {
    const KeyRange seen = visible_keys(f.mask, b, f.first_position, query + i, 1, range.last);
    const std::int64_t begin = seen.first - range.first, size = seen.size();
    Eigen::Map<Eigen::Array<C, Eigen::Dynamic, 1>> all(&scores(i, 0), range.size());
    auto row = all.segment(std::min(begin, range.size()), size);
    if (f.softcap > 0)
      row = (row * (f.scale / f.softcap)).tanh() * f.softcap;
    else
      row *= f.scale;
    if (f.mask.bias.data != nullptr && size > 0)
      row += Eigen::Map<const Eigen::Array<C, Eigen::Dynamic, 1>>(
          &f.mask.bias(head, query + i, seen.first), size);
    C largest = size > 0 ? row.maxCoeff() : kNone;
    if (f.has_sink) largest = std::max(largest, f.sink);
    if (size == 0 || largest == kNone) {
      all.setZero();
      sums[i] = 1;
      continue;
    }
    all.head(begin).setZero();
    all.tail(range.size() - begin - size).setZero();
    row = (row - largest).exp();
    sums[i] = row.sum() + (f.has_sink ? std::exp(f.sink - largest) : C(0));
  }
}

}  // namespace bda::inline v0::cpu

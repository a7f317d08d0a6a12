#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bda/checkpoint/bd_form.hpp"
#include "bda/checkpoint/convert.hpp"
#include "bda/checkpoint/tensor_store.hpp"
#include "bda/checkpoint/transformer.hpp"
#include "bda/core/matrix.hpp"

namespace bda::inline v0::checkpoint {

namespace detail {

/// [rows, cols] -> [cols, rows]. By way of a tile on the stack: with a power of two as the stride,
/// the tile's rows would fall on the same few cache sets, reading or writing.
template <class T>
[[nodiscard]] Matrix<T> transpose(const Matrix<T>& m) {
  constexpr std::int64_t kTile = 64;
  std::array<T, kTile * kTile> tile;
  Matrix<T> result(m.cols, m.rows);
  for (std::int64_t i0 = 0; i0 < m.rows; i0 += kTile)
    for (std::int64_t j0 = 0; j0 < m.cols; j0 += kTile) {
      const std::int64_t rows = std::min(kTile, m.rows - i0), cols = std::min(kTile, m.cols - j0);
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < cols; ++j)
          tile[static_cast<std::size_t>(j * kTile + i)] = m(i0 + i, j0 + j);
      for (std::int64_t j = 0; j < cols; ++j)
        std::copy_n(tile.data() + j * kTile, rows, result.data() + (j0 + j) * m.rows + i0);
    }
  return result;
}

/// Of columns that stand in groups of `group` each, [rows, groups, group], those from `offset` on,
/// `width` of each group: [rows, groups, width].
template <class T>
[[nodiscard]] Matrix<T> take_columns(const Matrix<T>& m, std::int64_t group, std::int64_t offset,
                                     std::int64_t width) {
  const std::int64_t groups = m.cols / group;
  Matrix<T> result(m.rows, groups * width);
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t g = 0; g < groups; ++g)
      std::copy_n(m.data() + i * m.cols + g * group + offset, width,
                  result.data() + i * result.cols + g * width);
  return result;
}

}  // namespace detail

/// Reads the tensors of one model as weights in T, and keeps count of what was read.
///
/// Every read checks the shape and that all values are finite; errors name file, tensor and the
/// flat index.
template <Storage T>
class WeightReader {
 public:
  /// Published files differ in whether the names of the model's body start with a prefix
  /// ("model."): they have the first of `body_prefixes` with which PREFIX + `probe` is there, or
  /// none. `lm_head` never has the prefix. With `fp8`, weights may be stored in F8_E4M3 beside
  /// their scales, NAME_scale_inv.
  WeightReader(const TensorStore& store, const std::vector<std::string>& body_prefixes,
               const std::string& probe, std::optional<ScaleBlocks> fp8 = std::nullopt)
      : store_(store), fp8_(fp8) {
    for (const std::string& prefix : body_prefixes)
      if (store.find(prefix + probe) != nullptr) {
        prefix_ = prefix;
        break;
      }
  }

  [[nodiscard]] const TensorStore& store() const { return store_; }
  /// What the names of the body's tensors start with in this checkpoint.
  [[nodiscard]] const std::string& prefix() const { return prefix_; }
  /// The full names of the tensors read so far.
  [[nodiscard]] const std::set<std::string>& names_read() const { return read_; }
  [[nodiscard]] const Tensor& tensor(const std::string& name) const {
    return store_.at(prefix_ + name);
  }

  /// Says which attention modules are stored in BD form, and with what prefix: the tensor it is
  /// told by may be one that conversion replaced. `form` must outlive the reader.
  void set_bd_form(const BdForm& form) {
    bd_form_ = &form;
    for (const std::optional<BdAttention>& entry : form)
      if (entry) prefix_ = entry->prefix;
  }
  /// How the `i`-th attention module is stored in BD form; null where it is stored plainly.
  [[nodiscard]] const BdAttention* bd_attention(std::int64_t i) const {
    if (bd_form_ == nullptr || i >= static_cast<std::int64_t>(bd_form_->size())) return nullptr;
    const std::optional<BdAttention>& entry = (*bd_form_)[static_cast<std::size_t>(i)];
    return entry ? &*entry : nullptr;
  }

  /// As stored, [rows, cols].
  Matrix<T> matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    Matrix<T> result;
    result.values = read(prefix_ + name, {rows, cols});
    result.rows = rows;
    result.cols = cols;
    return result;
  }
  /// Stored [out, in], as PyTorch's linear layers are; returned [in, out].
  Matrix<T> transposed(const std::string& name, std::int64_t in, std::int64_t out) {
    return detail::transpose(matrix(name, out, in));
  }
  std::vector<T> vector(const std::string& name, std::int64_t size) {
    return read(prefix_ + name, {size});
  }

  /// NAME.weight stored [out, in] and, where `has_bias`, NAME.bias.
  Linear<T> linear(const std::string& name, std::int64_t in, std::int64_t out, bool has_bias) {
    Linear<T> result;
    result.weight = transposed(name + ".weight", in, out);
    if (has_bias) result.bias = vector(name + ".bias", out);
    return result;
  }
  /// NAME.gate_proj, NAME.up_proj and NAME.down_proj.
  GatedMlp<T> gated_mlp(const std::string& name, std::int64_t hidden, std::int64_t intermediate,
                        bool has_bias, Activation activation) {
    return {linear(name + ".gate_proj", hidden, intermediate, has_bias),
            linear(name + ".up_proj", hidden, intermediate, has_bias),
            linear(name + ".down_proj", intermediate, hidden, has_bias), activation};
  }
  /// NAME.weight.
  Norm<T> rms_norm(const std::string& name, std::int64_t size, double epsilon) {
    return {NormKind::kRms, vector(name + ".weight", size), {}, epsilon};
  }
  /// NAME.weight and NAME.bias.
  Norm<T> layer_norm(const std::string& name, std::int64_t size, double epsilon) {
    return {NormKind::kLayer, vector(name + ".weight", size), vector(name + ".bias", size),
            epsilon};
  }

  /// lm_head.weight, [vocab, hidden], or empty where it is `tied` to the body's `embedding` tensor.
  /// A tied head that is stored all the same must be that tensor bit for bit.
  Matrix<T> lm_head(bool tied, const std::string& embedding, std::int64_t vocab,
                    std::int64_t hidden) {
    const std::string name = "lm_head.weight";
    if (!tied) {
      Matrix<T> result;
      result.values = read(name, {vocab, hidden});
      result.rows = vocab;
      result.cols = hidden;
      return result;
    }
    if (const Tensor* head = store_.find(name)) {
      const Tensor& tied_to = store_.at(prefix_ + embedding);
      if (head->type != tied_to.type || !std::ranges::equal(head->bytes, tied_to.bytes))
        throw Error(head->label(), "the values of " + tied_to.name + " (tie_word_embeddings)",
                    "other values");
      read_.insert(name);
    }
    return {};
  }

  /// Refuses a tensor that nothing above has read: it would be part of another architecture.
  /// Exempt are names that end in one of `suffixes`: buffers, which hold no weights.
  void refuse_unread(std::initializer_list<std::string_view> suffixes) const {
    for (const auto& [name, tensor] : store_.tensors()) {
      const auto is_suffix = [&n = name](std::string_view s) { return n.ends_with(s); };
      if (!read_.contains(name) && !std::ranges::any_of(suffixes, is_suffix))
        throw Error(tensor->label(), "only tensors of the architecture that config.json describes",
                    "a tensor of shape " + shape_text(tensor->shape) + " that it has no place for");
    }
  }

 private:
  std::vector<T> read(const std::string& name, const std::vector<std::int64_t>& shape) {
    const Tensor& tensor = store_.at(name);
    if (tensor.shape != shape)
      throw Error(tensor.label() + ".shape", shape_text(shape) + " (from config.json)",
                  shape_text(tensor.shape));
    std::vector<T> values = read_stored(tensor, name);
    for (std::size_t i = 0; i < values.size(); ++i)
      if (const auto value = static_cast<double>(values[i]); !std::isfinite(value))
        throw Error(tensor.label() + "[" + std::to_string(i) + "]", "a finite value",
                    std::to_string(value));
    read_.insert(name);
    return values;
  }

  std::vector<T> read_stored(const Tensor& tensor, const std::string& name) {
    const std::string scales = name + "_scale_inv";
    if (fp8_ && tensor.type.name == "F8_E4M3") {
      std::vector<T> values = read_block_scaled<T>(tensor, store_.at(scales), *fp8_);
      read_.insert(scales);
      return values;
    }
    if (fp8_ && store_.find(scales) != nullptr)
      throw Error(tensor.label() + ".dtype", "F8_E4M3 (as it has scales beside it)",
                  std::string(tensor.type.name));
    return read_values<T>(tensor);
  }

  const TensorStore& store_;
  std::string prefix_;
  const BdForm* bd_form_ = nullptr;
  std::optional<ScaleBlocks> fp8_;
  std::set<std::string> read_;
};

}  // namespace bda::inline v0::checkpoint

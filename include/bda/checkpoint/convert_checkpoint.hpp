#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "bda/checkpoint/bd_form.hpp"
#include "bda/checkpoint/bd_tensors.hpp"
#include "bda/checkpoint/conversion.hpp"
#include "bda/checkpoint/copy_files.hpp"
#include "bda/checkpoint/load.hpp"
#include "bda/checkpoint/output_folder.hpp"
#include "bda/checkpoint/shard_writer.hpp"
#include "bda/checkpoint/verify.hpp"
#include "bda/preparation/prepare.hpp"

namespace bda::inline v0::checkpoint {

namespace detail {

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The library's type that most values of the named tensors are stored in. Types of its own that
/// it reads with scales (eight bits) count as bf16.
inline DType stored_dtype(const TensorStore& store, const std::set<std::string>& names) {
  std::map<DType, std::int64_t> values;
  for (const std::string& name : names) {
    const Tensor& tensor = store.at(name);
    DType type = DType::kBF16;
    for (const DType t : {DType::kF64, DType::kF32, DType::kF16})
      if (tensor.type.name == element_name(t)) type = t;
    values[type] += tensor.size();
  }
  return std::max_element(values.begin(), values.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

/// The work of `convert_checkpoint`, one step a method, in the order they run.
template <class Prepare>
class Conversion {
 public:
  Conversion(const std::filesystem::path& input, const std::filesystem::path& output,
             const ConversionOptions& options, const Prepare& prepare_layer)
      : input_(open_checkpoint(input, options.map)),
        options_(options),
        prepare_(prepare_layer),
        others_(other_files(input_.tensors)) {
    if (!input_.bd.empty())
      throw Error((input / "config.json").string(), "a checkpoint that is not converted yet",
                  std::string("one with a section ") + kBdSection);
    output_.emplace(output, input);
    shards_.emplace(*output_, options_.shard_bytes);
  }

  ConversionReport run() {
    const Stopwatch time;
    copy_files();
    convert_attention();
    copy_tensors();
    report_.shards = shards_->publish();
    write_config();
    if (options_.verify) verify();
    output_->publish_config();
    report_.seconds = time.seconds();
    return std::move(report_);
  }

 private:
  void progress(std::string_view stage, std::int64_t done, std::int64_t total) const {
    if (options_.progress) options_.progress({stage, done, total});
  }

  void copy_files() {
    const auto count = static_cast<std::int64_t>(others_.size());
    for (const std::filesystem::path& name : others_) {
      progress("copying files", report_.files_copied++, count);
      copy_file(input_.tensors, name, *output_);
    }
  }

  void convert_attention() {
    const std::int64_t count = attention_count(input_.config);
    for (std::int64_t i = 0; i < count; ++i) {
      progress("converting attention", i, count);
      const Stopwatch time;
      AttentionConversion& done = report_.attention.emplace_back();
      done.name = attention_name(input_.config, i);
      form_.emplace_back();
      try {
        convert_module(i, done);
      } catch (const Error& error) {
        throw Error(done.name + ", " + error.name(), error.expected(), error.given());
      }
      input_.tensors.release_pages();
      done.seconds = time.seconds();
    }
    progress("converting attention", count, count);
  }

  /// Reads in float, which holds 16-bit and scaled eight-bit values exactly; in double where double
  /// is stored and stays.
  void convert_module(std::int64_t i, AttentionConversion& done) {
    const auto is_double = [](const auto& entry) { return entry.second->type.name == "F64"; };
    const auto& tensors = input_.tensors.tensors();
    const bool may_stay_double = options_.dtype
                                     ? *options_.dtype == DType::kF64
                                     : std::any_of(tensors.begin(), tensors.end(), is_double);
    if (may_stay_double && convert_as<double>(i, done)) return;
    convert_as<float>(i, done);
  }

  /// False where U is double and the module turns out to be stored in something shorter.
  template <class U>
  bool convert_as(std::int64_t i, AttentionConversion& done) {
    return std::visit(
        [&](const auto& config) {
          WeightReader<U> reader = weight_reader<U>(config, input_.tensors);
          const AttentionWeights<U> weights = read_attention(config, i, reader);
          const DType dtype =
              options_.dtype.value_or(stored_dtype(input_.tensors, reader.names_read()));
          if ((dtype == DType::kF64) != std::is_same_v<U, double>) return false;
          if constexpr (std::is_same_v<U, double>) {
            write<double>(weights, reader, done);
          } else {
            if (dtype == DType::kF32) write<float>(weights, reader, done);
            if (dtype == DType::kF16) write<Eigen::half>(weights, reader, done);
            if (dtype == DType::kBF16) write<Eigen::bfloat16>(weights, reader, done);
          }
          return true;
        },
        input_.config);
  }

  template <class T, class U>
  void write(const AttentionWeights<U>& weights, const WeightReader<U>& reader,
             AttentionConversion& done) {
    PreparationOptions options;
    options.basis = options_.basis;
    options.rounding = options_.rounding;
    options.threads = options_.threads;
    done.why_not_qk = why_qk_is_inexact(weights).value_or("");
    done.why_not_vo = why_vo_is_inexact(weights).value_or("");
    options.sides = options_.sides.value_or(
        Sides{.qk = done.why_not_qk.empty(), .vo = done.why_not_vo.empty()});
    if (!options.sides.qk && !options.sides.vo) return;

    PreparedLayer<T> prepared = prepare_.template operator()<T>(weights, options);
    const std::vector<Tensor> tensors = bd_tensors(prepared.weights, reader.prefix() + done.name);
    for (const Tensor& tensor : tensors) {
      if (input_.tensors.find(tensor.name) != nullptr)
        throw Error(tensor.name, "a name that no tensor of the original has", "one that has");
      shards_->add(tensor);
      done.bytes_after += static_cast<std::int64_t>(tensor.bytes.size());
    }
    for (const std::string& name : reader.names_read()) {
      done.bytes_before += static_cast<std::int64_t>(input_.tensors.at(name).bytes.size());
      replaced_.insert(name);
    }
    form_.back() =
        bd_attention(prepared.weights, done.name, prepared.report.basis, prepared.report.latent);
    form_.back()->prefix = reader.prefix();
    done.dtype = StorageTraits<T>::dtype;
    done.preparation = std::move(prepared.report);
  }

  /// Wide elements first: see ShardWriter.
  void copy_tensors() {
    std::vector<const Tensor*> rest;
    std::int64_t total = 0;
    for (const auto& [name, tensor] : input_.tensors.tensors()) {
      if (replaced_.contains(name)) continue;
      rest.push_back(tensor);
      total += static_cast<std::int64_t>(tensor->bytes.size());
    }
    std::stable_sort(rest.begin(), rest.end(),
                     [](const Tensor* a, const Tensor* b) { return a->type.bits > b->type.bits; });
    constexpr std::int64_t kMega = 1'000'000;
    for (const Tensor* tensor : rest) {
      progress("copying tensors, MB", report_.bytes_copied / kMega, total / kMega);
      shards_->add_mapped(*tensor);
      ++report_.tensors_copied;
      report_.bytes_copied += static_cast<std::int64_t>(tensor->bytes.size());
    }
    progress("copying tensors, MB", total / kMega, total / kMega);
  }

  /// The original's text with the section in front of the closing brace: nothing else changes.
  void write_config() {
    const MappedFile original(file_in_folder(input_.tensors.folder(), "config.json"));
    const std::string_view text = original.text().substr(0, original.text().rfind('}'));
    std::string config(text.substr(0, text.find_last_not_of(" \t\r\n") + 1));
    Json section = json_of(form_);
    if (!options_.map.empty()) {
      const MappedFile map(options_.map);
      section[kBdMap] = parse_json_object(map.text(), options_.map.string());
    }
    if (!config.ends_with('{')) config += ',';  // a described model's config may be empty
    config.append("\n  \"").append(kBdSection).append("\": ").append(section.dump());
    config += "\n}\n";
    NewFile file(output_->part_of("config.json"));
    file.write_at(0, std::as_bytes(std::span(config)));
    file.sync_and_close();
  }

  /// Before config.json has its name: what does not hold never becomes a checkpoint.
  void verify() {
    const Checkpoint written{input_.config, TensorStore(output_->path()), form_};
    const auto count = static_cast<std::int64_t>(form_.size());
    for (std::int64_t i = 0; i < count; ++i) {
      progress("verifying attention", i, count);
      const auto index = static_cast<std::size_t>(i);
      if (!form_[index]) continue;
      AttentionConversion& done = report_.attention[index];
      const bool in_double = *done.dtype == DType::kF64;
      const AttentionVerification found =
          in_double ? verify_attention(load_attention_layer<double>(input_, i),
                                       load_attention_layer<double>(written, i), *done.dtype)
                    : verify_attention(load_attention_layer<float>(input_, i),
                                       load_attention_layer<float>(written, i), *done.dtype);
      done.verified_qk = found.qk;
      done.verified_vo = found.vo;
      check_verified(done.name + ", queries times keys", found.qk);
      check_verified(done.name + ", values times output", found.vo);
      input_.tensors.release_pages();
      written.tensors.release_pages();
    }
    progress("verifying attention", count, count);
  }

  Checkpoint input_;
  const ConversionOptions& options_;
  const Prepare& prepare_;
  std::vector<std::filesystem::path> others_;
  std::optional<OutputFolder> output_;
  std::optional<ShardWriter> shards_;
  std::set<std::string> replaced_;
  BdForm form_;
  ConversionReport report_;
};

}  // namespace detail

/// `prepare`, as `convert_checkpoint` calls it.
struct PrepareLayer {
  template <class T, class U>
  PreparedLayer<T> operator()(const AttentionWeights<U>& layer,
                              const PreparationOptions& options) const {
    return prepare<T>(layer, options);
  }
};

/// Writes the checkpoint of the folder `input` to the folder `output` with its attention in
/// basis-decomposed form (bd_form.hpp says how it is stored); all other tensors and files are
/// copied byte for byte. `open_checkpoint` reads the result like any checkpoint.
///
/// Memory holds one attention module at a time; the input is mapped. `output` is new, empty, or
/// what an earlier conversion left; nothing outside it is written. Until the conversion is complete
/// and on disk it has no config.json, so whenever the process ends there is a complete checkpoint
/// or none, and the next call starts afresh.
///
/// `prepare_layer` makes a decomposed layer of a plain one; it is called with a layer in float
/// (double where that is stored) for each type that it may be stored in.
///
/// Throws `Error` for what cannot be read, decomposed, stored or verified; the folder is then left
/// without config.json.
template <class Prepare = PrepareLayer>
ConversionReport convert_checkpoint(const std::filesystem::path& input,
                                    const std::filesystem::path& output,
                                    const ConversionOptions& options = {},
                                    const Prepare& prepare_layer = {}) {
  check::at_least("options.threads", options.threads, 1);
  if (options.sides && !options.sides->qk && !options.sides->vo)
    throw Error("options.sides", "at least one side", "none");
  try {
    return detail::Conversion<Prepare>(input, output, options, prepare_layer).run();
  } catch (const std::filesystem::filesystem_error& error) {
    throw Error(error.path1().string(), "a path that can be used", error.code().message());
  }
}

}  // namespace bda::inline v0::checkpoint

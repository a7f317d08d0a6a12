#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bda/checkpoint/safetensors.hpp"

namespace bda::inline v0::checkpoint {

/// All tensors of a checkpoint folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names.
class TensorStore {
 public:
  static constexpr const char* kSingleFile = "model.safetensors";
  static constexpr const char* kIndexFile = "model.safetensors.index.json";

  /// Maps every file and checks every header. Throws `Error` where the folder has neither file, a
  /// shard is missing or lies outside the folder, or the index and the shards disagree on where a
  /// tensor is.
  explicit TensorStore(std::filesystem::path folder) : folder_(std::move(folder)) {
    if (std::filesystem::exists(folder_ / kIndexFile)) {
      open_shards();
    } else if (std::filesystem::exists(folder_ / kSingleFile)) {
      files_.emplace_back(folder_ / kSingleFile);
      for (const auto& [name, tensor] : files_.back().tensors()) tensors_.emplace(name, &tensor);
    } else {
      throw Error(folder_.string(),
                  std::string("a folder with ") + kSingleFile + " or " + kIndexFile,
                  std::filesystem::is_directory(folder_) ? "a folder with neither" : "no folder");
    }
  }

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] const std::vector<SafetensorsFile>& files() const { return files_; }
  /// By name.
  [[nodiscard]] const std::map<std::string, const Tensor*>& tensors() const { return tensors_; }
  /// Null where there is no such tensor.
  [[nodiscard]] const Tensor* find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : found->second;
  }
  /// Throws `Error` where there is no such tensor.
  [[nodiscard]] const Tensor& at(const std::string& name) const {
    if (const Tensor* tensor = find(name)) return *tensor;
    throw Error(folder_.string(), "a tensor " + name,
                "none of that name among " + std::to_string(tensors_.size()));
  }

 private:
  void open_shards() {
    const MappedFile file(folder_ / kIndexFile);
    const std::string label = file.path().string();
    const Json index = parse_json_object(
        {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, label);
    if (!index.contains("weight_map") || !index["weight_map"].is_object())
      throw Error(label + ": weight_map", "an object from tensor to file",
                  index.contains("weight_map") ? quote(index["weight_map"]) : "no such field");

    const Json& weight_map = index["weight_map"];

    std::map<std::string, std::vector<std::string>> names_by_shard;
    for (const auto& [name, shard] : weight_map.items()) {
      // A bare file name: an index must not reach outside its folder.
      if (!shard.is_string() || shard == "" || shard == "." || shard == ".." ||
          shard.get<std::string>().find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
        throw Error(label + ": " + name, "the name of a file in the folder", quote(shard));
      names_by_shard[shard.get<std::string>()].push_back(name);
    }

    for (const auto& [shard, names] : names_by_shard) {
      if (!std::filesystem::exists(folder_ / shard))
        throw Error(label + ": " + names.front(), "a file " + shard + " in the folder", "none");
      files_.emplace_back(folder_ / shard);
      for (const std::string& name : names) {
        const Tensor* tensor = files_.back().find(name);
        if (tensor == nullptr)
          throw Error(label + ": " + name, "a tensor in " + shard + ", as the index says",
                      "none of that name there");
        tensors_.emplace(name, tensor);
      }
      for (const auto& [name, tensor] : files_.back().tensors())
        if (!weight_map.contains(name) || weight_map[name] != shard)
          throw Error(
              tensor.label(), "a tensor that the index puts in this file",
              weight_map.contains(name) ? quote(weight_map[name]) : "no entry in the index");
    }
  }

  std::filesystem::path folder_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const Tensor*> tensors_;  // into files_, whose map nodes do not move
};

}  // namespace bda::inline v0::checkpoint

#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "bda/checkpoint/folder_file.hpp"
#include "bda/checkpoint/safetensors.hpp"
#include "bda/checkpoint/tensor_index.hpp"

namespace bda::inline v0::checkpoint {

/// All tensors of a checkpoint folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names.
class TensorStore {
 public:
  static constexpr const char* kSingleFile = "model.safetensors";
  static constexpr const char* kIndexFile = "model.safetensors.index.json";

  /// Maps every file and checks every header. Throws `Error` where the folder has neither file, a
  /// shard is missing or lies outside the folder (see `file_in_folder`), or the index and the
  /// shards disagree on where a tensor is.
  explicit TensorStore(std::filesystem::path folder) : folder_(std::move(folder)) {
    if (is_there(kIndexFile)) {
      open_shards();
    } else if (is_there(kSingleFile)) {
      files_.emplace_back(file_in_folder(folder_, kSingleFile));
      for (const auto& [name, tensor] : files_.back().tensors()) tensors_.emplace(name, &tensor);
    } else {
      throw Error(folder_.string(),
                  std::string("a folder with ") + kSingleFile + " or " + kIndexFile,
                  is_there("") ? "a folder with neither" : "no folder");
    }
  }

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] const std::vector<SafetensorsFile>& files() const { return files_; }
  /// Gives the memory of all pages read so far back to the system.
  void release_pages() const {
    for (const SafetensorsFile& file : files_) file.release_pages();
  }
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
  [[nodiscard]] bool is_there(const std::filesystem::path& name) const {
    std::error_code failure;  // a link that leads in circles leads nowhere
    return std::filesystem::exists(folder_ / name, failure);
  }

  void open_shards() {
    const MappedFile file(file_in_folder(folder_, kIndexFile));
    const std::string label = file.path().string();
    const TensorIndex index = parse_tensor_index(file.text(), label);
    for (const auto& [shard, names] : index) {
      if (!is_there(shard))
        throw Error(label + ": " + names.front(), "a file " + shard + " in the folder", "none");
      files_.emplace_back(file_in_folder(folder_, shard));
      for (const std::string& name : names) {
        const Tensor* tensor = files_.back().find(name);
        if (tensor == nullptr)
          throw Error(label + ": " + name, "a tensor in " + shard + ", as the index says",
                      "none of that name there");
        tensors_.emplace(name, tensor);
      }
    }
    // The index's names are all there now; a name that is there twice, or in another shard, is not
    // the index's.
    for (const SafetensorsFile& shard : files_)
      for (const auto& [name, tensor] : shard.tensors())
        if (const auto found = tensors_.find(name);
            found == tensors_.end() || found->second != &tensor)
          throw Error(tensor.label(), "a tensor that the index puts in this file",
                      found == tensors_.end() ? "no entry in the index"
                                              : "an entry for " + found->second->file);
  }

  std::filesystem::path folder_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const Tensor*> tensors_;  // into files_, whose map nodes do not move
};

}  // namespace bda::inline v0::checkpoint

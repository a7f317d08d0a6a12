#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "bda/checkpoint/mapped_file.hpp"
#include "bda/checkpoint/safetensors_header.hpp"

namespace bda::inline v0::checkpoint {

/// A safetensors file, mapped; the header is checked as a whole when it is opened.
class SafetensorsFile {
 public:
  /// Throws `Error` unless `path` is a well-formed file (see `parse_safetensors`).
  explicit SafetensorsFile(std::filesystem::path path)
      : file_(std::move(path)), content_(parse_safetensors(file_.bytes(), file_.path().string())) {}

  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  /// The header's `__metadata__`, empty where it has none.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const {
    return content_.metadata;
  }
  [[nodiscard]] const std::map<std::string, Tensor>& tensors() const { return content_.tensors; }
  /// Null where the file has no such tensor.
  [[nodiscard]] const Tensor* find(const std::string& name) const {
    const auto found = tensors().find(name);
    return found == tensors().end() ? nullptr : &found->second;
  }
  /// Throws `Error` where the file has no such tensor.
  [[nodiscard]] const Tensor& at(const std::string& name) const {
    if (const Tensor* tensor = find(name)) return *tensor;
    throw Error(path().string(), "a tensor " + name,
                "none of that name among " + std::to_string(tensors().size()));
  }
  /// Gives the memory of all pages read so far back to the system; they come in again when touched.
  void release_pages() const { MappedFile::release(file_.bytes()); }

 private:
  MappedFile file_;
  SafetensorsContent content_;
};

}  // namespace bda::inline v0::checkpoint

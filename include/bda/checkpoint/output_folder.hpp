#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "bda/checkpoint/bd_form.hpp"
#include "bda/checkpoint/json.hpp"
#include "bda/checkpoint/mapped_file.hpp"
#include "bda/checkpoint/tensor_store.hpp"

namespace bda::inline v0::checkpoint {

/// A file that is written once, under a temporary name; nothing that is there is followed or
/// overwritten.
class NewFile {
 public:
  explicit NewFile(std::filesystem::path path) : path_(std::move(path)) {
    id_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (id_ < 0) fail();
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (id_ >= 0) ::close(id_);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Writes at `offset`, or behind what was appended so far.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(id_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail();
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
  }

  /// Until this returns the file may be lost with the machine. Closes it.
  void sync_and_close() {
    if (::fsync(id_) != 0) fail();
    if (::close(std::exchange(id_, -1)) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(path_.string(), "a file that can be written",
                std::generic_category().message(errno));
  }

  std::filesystem::path path_;
  int id_ = -1;
};

/// The folder that a conversion writes: complete, or without config.json and so no checkpoint.
///
/// Every file is written as NAME.bda-part and synced; `publish` renames them, config.json last. A
/// marker file stands in the folder for as long as that takes, so that a run that was killed is
/// known as such and the next one starts afresh. Only files that conversions make are ever removed.
class OutputFolder {
 public:
  static constexpr const char* kMarker = ".bda-incomplete";
  static constexpr const char* kPart = ".bda-part";

  /// Takes the folder, making it where there is none. Throws `Error` unless it is empty or holds
  /// what a conversion left, finished or not; where another process is writing it; and where it
  /// is, holds or lies in the `input` folder.
  OutputFolder(std::filesystem::path path, const std::filesystem::path& input)
      : path_(std::move(path)) {
    namespace fs = std::filesystem;
    const fs::path out = fs::weakly_canonical(path_), in = fs::canonical(input);
    const auto holds = [](const fs::path& parent, const fs::path& child) {
      return std::mismatch(parent.begin(), parent.end(), child.begin(), child.end()).first ==
             parent.end();
    };
    if (holds(in, out) || holds(out, in))
      throw Error(path_.string(), "a folder apart from the input", in.string());
    std::error_code failure;
    fs::create_directories(path_, failure);
    if (!fs::is_directory(path_, failure))
      throw Error(path_.string(), "a folder that can be made", "something else of that name");
    check_ours();
    take_marker();
    remove_leftovers();
  }
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  ~OutputFolder() {
    if (marker_ >= 0) ::close(marker_);  // and with it the lock
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Where to write the file that `publish` will call `name`, a relative path; makes its parents.
  [[nodiscard]] std::filesystem::path part_of(const std::filesystem::path& name) {
    std::filesystem::path parent = path_;
    for (const auto& folder : name.parent_path()) {
      parent /= folder;
      std::error_code failure;
      std::filesystem::create_directory(parent, failure);
      if (!std::filesystem::is_directory(std::filesystem::symlink_status(parent, failure)))
        throw Error(parent.string(), "a folder that can be made", "something else of that name");
    }
    std::filesystem::path part = path_ / name;
    part += kPart;
    return part;
  }

  /// Renames a file written under `part_of(part_name)` to `name`, and syncs its folder.
  void rename(const std::filesystem::path& part_name, const std::filesystem::path& name) const {
    std::filesystem::path part = path_ / part_name;
    part += kPart;
    std::error_code failure;
    std::filesystem::rename(part, path_ / name, failure);
    if (failure)
      throw Error((path_ / name).string(), "a file that can be written", failure.message());
  }

  /// Makes what was renamed so far last.
  void sync(const std::filesystem::path& name = {}) const { sync_folder(path_ / name); }

  /// Whether `name`, a relative path, is one of those that a conversion gives by itself.
  [[nodiscard]] static bool reserves(const std::filesystem::path& name) {
    const std::string last = name.filename().string();
    return last.ends_with(kPart) || last == kMarker || (!name.has_parent_path() && is_output(last));
  }

  /// The last step: from here on the folder is a checkpoint.
  void publish_config() {
    sync();
    rename("config.json", "config.json");
    sync();
    std::filesystem::remove(path_ / kMarker);
    ::close(std::exchange(marker_, -1));
  }

 private:
  static void sync_folder(const std::filesystem::path& folder) {
    const int id = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = id >= 0 && ::fsync(id) == 0;
    const int error = errno;
    if (id >= 0) ::close(id);
    if (!synced)
      throw Error(folder.string(), "a folder that can be synced",
                  std::generic_category().message(error));
  }

  /// Refuses a folder with something in it, unless a conversion has written it.
  void check_ours() const {
    namespace fs = std::filesystem;
    if (fs::is_empty(path_) || fs::exists(fs::symlink_status(path_ / kMarker))) return;
    if (fs::is_regular_file(fs::symlink_status(path_ / "config.json"))) {
      const MappedFile config(path_ / "config.json");
      if (parse_json_object(config.text(), config.path().string()).contains(kBdSection)) return;
    }
    throw Error(path_.string(), "an empty folder, or one that a conversion wrote",
                "a folder with other files");
  }

  void take_marker() {
    const std::filesystem::path marker = path_ / kMarker;
    marker_ = ::open(marker.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (marker_ < 0)
      throw Error(marker.string(), "a file that can be written",
                  std::generic_category().message(errno));
    if (::flock(marker_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      throw Error(path_.string(), "a folder that nobody else is writing", "another conversion");
    sync();
  }

  /// Files whose names only a conversion gives, or that are about to be replaced. config.json goes
  /// first: from then on the folder is no checkpoint.
  void remove_leftovers() const {
    namespace fs = std::filesystem;
    if (fs::remove(path_ / "config.json")) sync();
    std::vector<fs::path> leftovers;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path_)) {
      const std::string name = entry.path().filename().string();
      const bool top = entry.path().parent_path() == path_;
      if (entry.is_directory() && !entry.is_symlink()) continue;
      if (name.ends_with(kPart) || (top && is_output(name))) leftovers.push_back(entry.path());
    }
    for (const fs::path& leftover : leftovers) fs::remove(leftover);
  }

  /// model.safetensors, model-00001-of-00002.safetensors or the index.
  static bool is_output(std::string_view name) {
    if (name == TensorStore::kSingleFile || name == TensorStore::kIndexFile) return true;
    constexpr std::string_view pattern = "model-#####-of-#####.safetensors";
    return std::equal(name.begin(), name.end(), pattern.begin(), pattern.end(),
                      [](char c, char p) { return p == '#' ? c >= '0' && c <= '9' : c == p; });
  }

  std::filesystem::path path_;
  int marker_ = -1;
};

}  // namespace bda::inline v0::checkpoint

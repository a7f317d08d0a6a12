#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "bda/checkpoint/folder_file.hpp"
#include "bda/checkpoint/output_folder.hpp"
#include "bda/checkpoint/tensor_store.hpp"

namespace bda::inline v0::checkpoint {

/// The files of a checkpoint's folder beside config.json and the tensors, as relative paths:
/// tokenizers, licences, code, in subfolders too. Left out are `.git` and `.cache`, the
/// book-keeping of downloads. Throws `Error` on what is neither a file nor a folder, on links that
/// lead out of the folder, and on names that the conversion gives itself.
[[nodiscard]] inline std::vector<std::filesystem::path> other_files(const TensorStore& store) {
  namespace fs = std::filesystem;
  const fs::path& folder = store.folder();
  std::set<fs::path> replaced{"config.json", TensorStore::kIndexFile, TensorStore::kSingleFile};
  for (const SafetensorsFile& file : store.files()) replaced.insert(file.path().filename());

  std::vector<fs::path> files;
  for (auto entry = fs::recursive_directory_iterator(folder);
       entry != fs::recursive_directory_iterator(); ++entry) {
    const fs::path name = entry->path().lexically_relative(folder);
    std::error_code failure;
    if (!entry->is_symlink(failure) && entry->is_directory(failure)) {
      if (name == ".git" || name == ".cache") entry.disable_recursion_pending();
      continue;
    }
    if (replaced.contains(name)) continue;
    if (OutputFolder::reserves(name))
      throw Error(entry->path().string(), "a name that the conversion does not give itself",
                  "a file beside the checkpoint's own");
    if (!fs::is_regular_file(file_in_folder(folder, name), failure))
      throw Error(entry->path().string(), "a file or a folder", "something else");
    files.push_back(name);
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Copies a file byte for byte; it has its name, and stays, as soon as this returns.
inline void copy_file(const TensorStore& store, const std::filesystem::path& name,
                      OutputFolder& output) {
  const MappedFile from(file_in_folder(store.folder(), name));
  NewFile to(output.part_of(name));
  constexpr std::size_t kChunk = std::size_t{8} << 20;
  const std::span<const std::byte> bytes = from.bytes();
  for (std::size_t done = 0; done < bytes.size(); done += kChunk) {
    const auto chunk = bytes.subspan(done, std::min(kChunk, bytes.size() - done));
    to.write_at(done, chunk);
    MappedFile::release(chunk);
  }
  to.sync_and_close();
  output.rename(name, name);
  output.sync(name.parent_path());
}

}  // namespace bda::inline v0::checkpoint

#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>

#include "bda/core/error.hpp"

namespace bda::inline v0::checkpoint {

/// The path of the file `name` in a checkpoint's folder. Throws `Error` where a symbolic link leads
/// out of the folder: a checkpoint from elsewhere must not name files of this machine. The blobs of
/// a Hugging Face cache, which the links of its folders `snapshots/REVISION` lead to, count as the
/// folder's own. A file that is not there is left for the one who opens it to report.
[[nodiscard]] inline std::filesystem::path file_in_folder(const std::filesystem::path& folder,
                                                          const std::filesystem::path& name) {
  namespace fs = std::filesystem;
  const fs::path path = folder / name;
  std::error_code failure;
  const fs::path real = fs::canonical(path, failure);
  if (failure) return path;
  const fs::path root = fs::canonical(folder, failure);
  if (failure) return path;
  const auto lies_in = [&](const fs::path& parent) {
    return std::mismatch(parent.begin(), parent.end(), real.begin(), real.end()).first ==
           parent.end();
  };
  if (lies_in(root)) return path;
  const fs::path snapshots = root.parent_path();
  if (snapshots.filename() == "snapshots" && lies_in(snapshots.parent_path() / "blobs"))
    return path;
  throw Error(path.string(), "a file within the folder", "a link to " + real.string());
}

}  // namespace bda::inline v0::checkpoint

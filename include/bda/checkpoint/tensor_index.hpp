#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bda/checkpoint/json.hpp"

namespace bda::inline v0::checkpoint {

/// The names of the tensors in each shard, as `model.safetensors.index.json` gives them.
using TensorIndex = std::map<std::string, std::vector<std::string>>;

/// Reads the text of an index; `label` names the file in errors. Throws `Error` where there is no
/// `weight_map`, or where it names anything but files of the index's own folder.
[[nodiscard]] inline TensorIndex parse_tensor_index(std::string_view text,
                                                    const std::string& label) {
  const Json index = parse_json_object(text, label);
  const auto found = index.find("weight_map");
  if (found == index.end() || !found->is_object())
    throw Error(label + ": weight_map", "an object from tensor to file",
                found == index.end() ? "no such field" : quote(*found));
  TensorIndex names_by_shard;
  for (const auto& [name, shard] : found->items()) {
    // A bare file name: an index must not reach outside its folder.
    if (!shard.is_string() || shard == "" || shard == "." || shard == ".." ||
        shard.get_ref<const std::string&>().find_first_of(std::string_view("/\\\0", 3)) !=
            std::string::npos)
      throw Error(label + ": " + name, "the name of a file in the folder", quote(shard));
    names_by_shard[shard.get<std::string>()].push_back(name);
  }
  return names_by_shard;
}

}  // namespace bda::inline v0::checkpoint

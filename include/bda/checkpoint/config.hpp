#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <variant>

#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/config_fields.hpp"
#include "bda/checkpoint/families/deepseek_v2.hpp"
#include "bda/checkpoint/families/gpt2.hpp"
#include "bda/checkpoint/families/llama.hpp"
#include "bda/checkpoint/mapped_file.hpp"

/// config.json as typed values, one struct per model family; members have the field's own name.
///
/// Nothing that bears on the result is ignored: a field or a value that the library does not
/// implement is refused by name, and so is every field it has never heard of.
namespace bda::inline v0::checkpoint {

/// The config of any family that the library reads.
using ModelConfig = std::variant<DeepseekV2Config, Gpt2Config, LlamaConfig>;

/// Reads a parsed config.json; `label` names the file in errors. Throws `Error` on a model type, a
/// field or a value that is not implemented.
[[nodiscard]] inline ModelConfig parse_config(const Json& json, const std::string& label) {
  ConfigFields fields(json, label);
  // Said first: no other field of such a checkpoint helps its reader.
  if (fields.find("quantization_config") != nullptr)
    fields.refuse("quantization_config", "no quantization");
  detail::ignore_common_fields(fields);
  const std::string type = fields.find_text("model_type").value_or("");
  std::optional<ModelConfig> config;
  if (type == "deepseek_v2")
    config = detail::read_deepseek_v2(fields);
  else if (type == "gpt2")
    config = detail::read_gpt2(fields);
  else if (type == "llama")
    config = detail::read_llama(fields);
  else
    fields.refuse("model_type", "deepseek_v2, gpt2 or llama");
  fields.refuse_unknown();
  return *config;
}

/// Reads the file `path`.
[[nodiscard]] inline ModelConfig read_config(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_config(
      parse_json_object({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()},
                        path.string()),
      path.string());
}

}  // namespace bda::inline v0::checkpoint

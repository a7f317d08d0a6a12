#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>

#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/config_fields.hpp"
#include "bda/checkpoint/families/bert.hpp"
#include "bda/checkpoint/families/clip.hpp"
#include "bda/checkpoint/families/deepseek_v2.hpp"
#include "bda/checkpoint/families/deepseek_v3.hpp"
#include "bda/checkpoint/families/gpt2.hpp"
#include "bda/checkpoint/families/gpt_neox.hpp"
#include "bda/checkpoint/families/llama.hpp"
#include "bda/checkpoint/families/mapped.hpp"
#include "bda/checkpoint/families/opt.hpp"
#include "bda/checkpoint/families/phi.hpp"
#include "bda/checkpoint/families/rotary_decoder.hpp"
#include "bda/checkpoint/families/t5.hpp"
#include "bda/checkpoint/families/vit.hpp"
#include "bda/checkpoint/families/whisper.hpp"
#include "bda/checkpoint/mapped_file.hpp"

/// config.json as typed values, one struct per model family; members have the field's own name.
///
/// Nothing that bears on the result is ignored: a field or a value that the library does not
/// implement is refused by name, and so is every field it has never heard of.
namespace bda::inline v0::checkpoint {

/// The config of any family that the library reads.
using ModelConfig =
    std::variant<BertConfig, ClipConfig, DeepseekV2Config, DeepseekV3Config, Gpt2Config,
                 GptNeoxConfig, LlamaConfig, MapConfig, OptConfig, PhiConfig, RotaryDecoderConfig,
                 T5Config, VitConfig, WhisperConfig>;

namespace detail {

/// How a model type's config is read.
struct Family {
  std::string_view model_type;
  ModelConfig (*read)(ConfigFields&);
  bool may_be_fp8 = false;
};

template <auto Read>
ModelConfig read_as(ConfigFields& fields) {
  return Read(fields);
}

inline constexpr std::array kFamilies{
    Family{"bert", read_as<read_bert>},
    Family{"clip", read_as<read_clip>},
    Family{"clip_text_model", read_as<read_clip_text>},
    Family{"clip_vision_model", read_as<read_clip_vision>},
    Family{"deepseek_v2", read_as<read_deepseek_v2>},
    Family{"deepseek_v3", read_as<read_deepseek_v3>, true},
    Family{"gemma", read_as<read_gemma>},
    Family{"gemma2", read_as<read_gemma2>},
    Family{"gemma3", read_as<read_gemma3>},
    Family{"gemma3_text", read_as<read_gemma3_text>},
    Family{"gpt2", read_as<read_gpt2>},
    Family{"gpt_neox", read_as<read_gpt_neox>},
    Family{"kimi_k2", read_as<read_deepseek_v3>, true},
    Family{"llama", read_as<read_llama>},
    Family{"mistral", read_as<read_mistral>},
    Family{"opt", read_as<read_opt>},
    Family{"phi", read_as<read_phi>},
    Family{"qwen2", read_as<read_qwen2>},
    Family{"qwen3", read_as<read_qwen3>},
    Family{"roberta", read_as<read_bert>},
    Family{"t5", read_as<read_t5>},
    Family{"vit", read_as<read_vit>},
    Family{"whisper", read_as<read_whisper>},
};

}  // namespace detail

/// Reads a parsed config.json; `label` names the file in errors. Throws `Error` on a model type, a
/// field or a value that is not implemented.
[[nodiscard]] inline ModelConfig parse_config(const Json& json, const std::string& label) {
  ConfigFields fields(json, label);
  const std::string type = fields.find_text("model_type").value_or("");
  const auto* family = std::ranges::find(detail::kFamilies, type, &detail::Family::model_type);
  if (family == detail::kFamilies.end()) {
    std::string known;
    for (const detail::Family& f : detail::kFamilies) known.append(f.model_type).append(", ");
    fields.refuse("model_type", known + "or a description of the tensors (--map FILE)");
  }
  // Said first: no other field of such a checkpoint helps its reader.
  if (!family->may_be_fp8 && fields.find("quantization_config") != nullptr)
    fields.refuse("quantization_config", "no quantization");
  detail::ignore_common_fields(fields);
  ModelConfig config = family->read(fields);
  fields.refuse_unknown();
  return config;
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

// A libFuzzer target: what the library parses of a checkpoint from elsewhere. The first byte says
// what the rest is taken for. Nothing but bda::Error may come out, and what is accepted must hold
// together; out-of-bounds reads and overflows are the sanitizers' to find.
#include <bda/checkpoint/plan.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)

void require(bool condition) {
  if (!condition) std::abort();
}

void read_file(std::span<const std::byte> file) {
  const SafetensorsContent content = parse_safetensors(file, "file");
  std::size_t covered = 0;
  for (const auto& [name, tensor] : content.tensors) {
    require(tensor.name == name && find_element_type(tensor.type.name) != nullptr);
    require(tensor.bytes.empty() ||
            (tensor.bytes.data() >= file.data() &&
             tensor.bytes.data() + tensor.bytes.size() <= file.data() + file.size()));
    require(static_cast<std::uint64_t>(tensor.size()) *
                static_cast<std::uint64_t>(tensor.type.bits) ==
            8 * tensor.bytes.size());
    covered += tensor.bytes.size();
    (void)shape_text(tensor.shape);
    for (const bda::DType t : {bda::DType::kF64, bda::DType::kF32})
      if (tensor.type.name == element_name(t)) (void)read_values<float>(tensor);
  }
  std::uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof(header));
  require(sizeof(header) + header + covered == file.size());
}

void read_index(std::string_view text) {
  for (const auto& [shard, names] : parse_tensor_index(text, "index")) {
    require(!shard.empty() && shard.find('/') == std::string::npos && shard != "..");
    require(!names.empty());
  }
}

void visit_modules(const ModelConfig& config) {
  const std::int64_t count = attention_count(config);
  require(count >= 1);
  for (const std::int64_t i : {std::int64_t{0}, count / 2, count - 1}) {
    (void)attention_name(config, i);
    (void)attention_config(config, i);
  }
}

void read_model_config(std::string_view text) {
  Json config = parse_json_object(text, "config");
  if (const auto section = config.find(kBdSection); section != config.end()) {
    const BdForm form = parse_bd_form(*section, "bda");
    require(json_of(parse_bd_form(json_of(form), "again")) == json_of(form));
    config.erase(section);
  }
  const ModelConfig model = parse_config(config, "config");
  visit_modules(model);
  if (attention_count(model) <= 256) (void)plan_conversion(config, "config");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::span rest(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  const std::string_view text(reinterpret_cast<const char*>(rest.data()), rest.size());
  try {
    switch (data[0]) {
      case 'H':
        read_file(rest);
        break;
      case 'I':
        read_index(text);
        break;
      case 'C':
        read_model_config(text);
        break;
      case 'M':
        visit_modules(parse_map(parse_json_object(text, "map"), "map"));
        break;
      default:
        break;
    }
  } catch (const bda::Error&) {
  }
  return 0;
}

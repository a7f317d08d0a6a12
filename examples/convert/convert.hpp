#pragma once

#include <filesystem>

#include "bda/checkpoint/conversion.hpp"

namespace convert {

/// bda::checkpoint::convert_checkpoint, in a translation unit of its own: it takes long to compile.
bda::checkpoint::ConversionReport convert(const std::filesystem::path& input,
                                          const std::filesystem::path& output,
                                          const bda::checkpoint::ConversionOptions& options);

}  // namespace convert

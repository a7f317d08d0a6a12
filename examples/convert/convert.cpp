#include "convert.hpp"

#include "bda/checkpoint/convert_checkpoint.hpp"
#include "preparation.hpp"

namespace convert {

bda::checkpoint::ConversionReport convert(const std::filesystem::path& input,
                                          const std::filesystem::path& output,
                                          const bda::checkpoint::ConversionOptions& options) {
  return bda::checkpoint::convert_checkpoint(input, output, options);
}

}  // namespace convert

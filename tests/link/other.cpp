#include <bda/bda.hpp>
#include <bda/checkpoint.hpp>

bool same_version(bda::Version version);

bool same_version(bda::Version version) {
  return version.major == bda::kVersion.major && version.minor == bda::kVersion.minor &&
         version.patch == bda::kVersion.patch;
}

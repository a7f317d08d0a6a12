#pragma once

#define BDA_VERSION_MAJOR 0
#define BDA_VERSION_MINOR 1
#define BDA_VERSION_PATCH 0

/// Everything lives in `bda::v0`, an inline namespace: two major versions of the library can be
/// linked into one process without their symbols meeting.
namespace bda::inline v0 {

struct Version {
  int major, minor, patch;
};

inline constexpr Version kVersion{BDA_VERSION_MAJOR, BDA_VERSION_MINOR, BDA_VERSION_PATCH};

}  // namespace bda::inline v0

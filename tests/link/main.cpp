#include <bda/bda.hpp>
#include <bda/checkpoint.hpp>

bool same_version(bda::Version version);  // other.cpp

int main() { return same_version(bda::kVersion) ? 0 : 1; }

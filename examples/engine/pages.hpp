#pragma once
#include <cstdint>
namespace engine {
constexpr std::int64_t kPage = 16;  // tokens
/// One layer's pages as a kernel sees them: a token's row is [keys | values].
template <class T>
struct Pages {
  T* memory;            // of all layers
  std::int32_t* table;  // [page of the sequence], on the device
  std::int64_t key_row, value_row;
  constexpr T* key(std::int64_t t) const {
    return memory + (table[t / kPage] * kPage + t % kPage) * (key_row + value_row);
  }
  constexpr T* value(std::int64_t t) const { return key(t) + key_row; }
};
}  // namespace engine

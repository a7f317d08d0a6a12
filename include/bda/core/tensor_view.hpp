#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace bda::inline v0 {

/// A non-owning view: pointer, extents and element strides, all 64-bit.
///
/// The last extent need not be contiguous for the type; each entry point states what it needs.
template <class T, int Rank>
struct TensorView {
  T* data = nullptr;
  std::array<std::int64_t, Rank> extents{};
  std::array<std::int64_t, Rank> strides{};

  constexpr TensorView() = default;
  constexpr TensorView(T* data_, std::array<std::int64_t, Rank> extents_,
                       std::array<std::int64_t, Rank> strides_)
      : data(data_), extents(extents_), strides(strides_) {}
  /// Row-major, densely packed.
  constexpr TensorView(T* data_, std::array<std::int64_t, Rank> extents_)
      : data(data_), extents(extents_) {
    std::int64_t stride = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= extents[i];
    }
  }
  /// A view of mutable values is a view of const ones.
  template <class U>
  constexpr operator TensorView<U, Rank>() const  // NOLINT(google-explicit-constructor)
      requires(!std::is_const_v<T> && std::is_same_v<U, const T>) {
    return {data, extents, strides};
  }

  [[nodiscard]] constexpr std::int64_t extent(int i) const { return extents[i]; }
  [[nodiscard]] constexpr std::int64_t stride(int i) const { return strides[i]; }
  [[nodiscard]] constexpr std::int64_t size() const {
    std::int64_t n = 1;
    for (std::int64_t e : extents) n *= e;
    return n;
  }
  [[nodiscard]] constexpr bool empty() const { return data == nullptr || size() == 0; }

  template <class... Index>
  constexpr T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == Rank);
    std::int64_t offset = 0;
    int i = 0;
    ((offset += static_cast<std::int64_t>(index) * strides[i++]), ...);
    return data[offset];
  }

  /// The sub-view at `index` of the first dimension.
  constexpr TensorView<T, Rank - 1> operator[](std::int64_t index) const requires(Rank > 1) {
    TensorView<T, Rank - 1> sub;
    sub.data = data + index * strides[0];
    for (int i = 1; i < Rank; ++i) {
      sub.extents[i - 1] = extents[i];
      sub.strides[i - 1] = strides[i];
    }
    return sub;
  }
};

template <class T>
using MatrixView = TensorView<T, 2>;

}  // namespace bda::inline v0

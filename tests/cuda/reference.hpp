#pragma once

#include <cstdint>

#include "bda/cuda/absorbed/arguments.hpp"
#include "bda/cuda/attend/arguments.hpp"
#include "bda/cuda/attention_ready/arguments.hpp"
#include "bda/cuda/projection/arguments.hpp"

// What the GPU tests compare with; compiled by the CUDA compiler in reference.cu.
namespace bda_test {

struct Comparison {
  unsigned long long checked = 0;   // elements compared
  unsigned long long wrong = 0;     // off by more than the bound, or NaN
  unsigned long long poisoned = 0;  // elements of the whole buffer that still hold the fill
  double worst = 0;                 // largest error over its bound
};

/// The fill of outputs and of what lies around inputs: every byte 0xff, a NaN in every type.
constexpr int kPoison = 0xff;

/// Random normal values times `scale` into [rows, columns] at `stride`; the gaps keep what they
/// hold.
template <class T>
void fill_normal(T* data, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                 std::uint64_t seed, float scale);

/// Compares `args.out` with the formula in double precision from the plain coefficients
/// [rest, heads * width], and counts the poisoned elements in `buffer` (of `elements`), in which
/// out lies.
template <class T>
Comparison compare(const bda::cuda::ProjectionArguments<T>& args, const T* coefficients,
                   const T* buffer, std::int64_t elements);

/// The same for the key's (`is_key`) or the value's side of attention-ready output; `buffer` is of
/// `elements` elements of what is stored. `rounded_before` says that e4m3 was rounded from T and
/// not from the fp32 sum.
template <class T>
Comparison compare(const bda::cuda::AttentionReadyArguments<T>& args, bool is_key,
                   const T* coefficients, const void* buffer, std::int64_t elements,
                   bool rounded_before);

/// The same for a product of absorbed decoding.
template <class T>
Comparison compare(const bda::cuda::AbsorbedArguments<T>& args, const T* coefficients,
                   const T* buffer, std::int64_t elements);

/// The same of the attention step.
template <class T>
Comparison compare_attend(const bda::cuda::AttendArguments<T>& args, const T* buffer,
                          std::int64_t elements);

}  // namespace bda_test

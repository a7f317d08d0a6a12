// The attention step as a C function of a shared library, for bench_attend.py.
#include <cstdio>

#include "bda/cuda.cuh"

BDA_INSTANTIATE_CUDA_ATTEND(__nv_bfloat16);
template bda::cuda::DeviceInfo bda::cuda::query_device<__nv_bfloat16>();

/// Dense [batch, tokens, heads, width] operands in bf16; returns 0, or prints why not.
extern "C" int bda_attend(const void* q, const void* k, const void* v, void* out, long batch,
                          long queries, long keys, long heads, long kv_heads, long qk_width,
                          long v_width, float scale, int causal, void* workspace,
                          unsigned long workspace_bytes, void* stream) {
  using T = __nv_bfloat16;
  static const bda::cuda::DeviceInfo device = bda::cuda::query_device<T>();
  bda::cuda::AttendArguments<T> args;
  args.q = {static_cast<const T*>(q), {batch, queries, heads, qk_width}};
  args.k = {static_cast<const T*>(k), {batch, keys, kv_heads, qk_width}};
  args.v = {static_cast<const T*>(v), {batch, keys, kv_heads, v_width}};
  args.out = {static_cast<T*>(out), {batch, queries, heads, v_width}};
  args.scale = scale;
  args.causal = causal != 0;
  const bda::Status status =
      run(args, device, workspace, workspace_bytes, static_cast<cudaStream_t>(stream));
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}

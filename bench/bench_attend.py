#!/usr/bin/env python3
"""The built-in attention step against PyTorch's scaled_dot_product_attention, alternating.

    bench/bench_attend.py LIBRARY [RESULTS.json]

LIBRARY is bench/attend_library.cu as a shared library (nvcc -shared). Needs PyTorch and a GPU. Every
round runs all contestants in a new order, 10 ms each after 5 ms of warming up; medians. For decoding
also the bandwidth of a large copy in the same run.
"""

import ctypes
import datetime
import json
import random
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

PREFILL = [(1, 4096, 16, 16, 128, 128), (1, 4096, 16, 16, 192, 128), (4, 1024, 16, 16, 128, 128)]
DECODE = [(16, 8192, 16, 16, 128, 128), (16, 8192, 16, 16, 192, 128), (16, 8192, 16, 4, 128, 128)]
ROUNDS = 9


def time_us(launch, budget_us=10000):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    launch()
    begin.record()
    launch()
    end.record()
    end.synchronize()
    once = max(begin.elapsed_time(end) * 1e3, 1)
    for _ in range(int(budget_us / 2 / once) + 1):
        launch()
    count = int(budget_us / once) + 1
    begin.record()
    for _ in range(count):
        launch()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / count


def contest(contestants):
    times = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name in random.sample(list(contestants), len(contestants)):
            times[name].append(time_us(contestants[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def sdpa_contestants(q, k, v, causal, groups):
    """Every backend that takes these operands, on transposed views ([batch, heads, tokens, width])."""
    found = {}
    operands = [x.transpose(1, 2) for x in (q, k, v)]
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION,
                    SDPBackend.EFFICIENT_ATTENTION):
        def launch(backend=backend):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*operands, is_causal=causal,
                                                      enable_gqa=groups > 1)
        try:
            launch()
            torch.cuda.synchronize()
            found[backend.name.lower()] = launch
        except RuntimeError:
            pass
    return found


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("--"):
        sys.exit(__doc__)
    library = ctypes.CDLL(sys.argv[1])
    pointer = lambda x: ctypes.c_void_p(x.data_ptr())
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    results = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "torch": torch.__version__,
        "runs": [],
    }
    random.seed(1)
    torch.manual_seed(1)

    def measure(batch, queries, keys, heads, kv_heads, qk, width, causal):
        make = lambda *shape: torch.randn(*shape, dtype=torch.bfloat16, device="cuda")
        q, k, v = (make(batch, queries, heads, qk), make(batch, keys, kv_heads, qk),
                   make(batch, keys, kv_heads, width))
        out = torch.empty(batch, queries, heads, width, dtype=torch.bfloat16, device="cuda")

        def ours():
            code = library.bda_attend(
                pointer(q), pointer(k), pointer(v), pointer(out), *map(ctypes.c_long, (
                    batch, queries, keys, heads, kv_heads, qk, width)),
                ctypes.c_float(qk**-0.5), int(causal), pointer(workspace),
                ctypes.c_ulong(workspace.numel()),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
            assert code == 0

        contestants = {"ours": ours, **sdpa_contestants(q, k, v, causal, heads // kv_heads)}
        ours()
        for name, launch in contestants.items():
            if name != "ours":
                error = (launch().transpose(1, 2).float() - out.float()).abs().max().item()
                print(f"   largest difference from {name}: {error:.4f}")
        if queries == 1:
            source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
            target = torch.empty_like(source)
            contestants["copy_1GiB"] = lambda: target.copy_(source)
        us = contest(contestants)
        run = {"batch": batch, "queries": queries, "keys": keys, "heads": heads,
               "kv_heads": kv_heads, "qk_width": qk, "v_width": width, "causal": causal, "us": us}
        if queries == 1:
            read = 2 * batch * keys * kv_heads * (qk + width)
            run["gbytes_per_second"] = read / us["ours"] * 1e-3
            run["copy_gbytes_per_second"] = 2 * (1 << 30) / us["copy_1GiB"] * 1e-3
            run["share_of_copy"] = run["gbytes_per_second"] / run["copy_gbytes_per_second"]
        others = [t for name, t in us.items() if name not in ("ours", "copy_1GiB")]
        if others:
            run["share_of_best_sdpa"] = min(others) / us["ours"]
        products = 2 * batch * heads * queries * keys * (qk + width) / (2 if causal else 1)
        run["tflops"] = products / us["ours"] * 1e-6
        results["runs"].append(run)
        print({key: round(value, 3) if isinstance(value, float) else value
               for key, value in run.items()})

    for batch, tokens, heads, kv_heads, qk, width in PREFILL:
        measure(batch, tokens, tokens, heads, kv_heads, qk, width, True)
    for batch, keys, heads, kv_heads, qk, width in DECODE:
        measure(batch, 1, keys, heads, kv_heads, qk, width, False)
    if len(sys.argv) == 3:
        with open(sys.argv[2], "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()

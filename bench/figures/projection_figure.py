#!/usr/bin/env python3
"""Draws tokens per second over the number of tokens from what bench_projection_cuda recorded.

    bench/figures/projection_figure.py [RESULTS.json] [OUTPUT.svg]

Only the shape of DeepSeek's layers (d = 512, r = 128, 128 heads). Needs Python alone.
"""

import json
import math
import pathlib
import re
import sys

from make_figures import GAP, LEFT, Svg, SUPERSCRIPT

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, HEIGHT, TOP = 560, 300, 70
# Counter of the launch's microseconds, its label, colour and whether the line is dashed.
LINES = [
    ("ours_us", "bda, fused", "#d55e00"),
    ("ours_dependent_us", "bda, dependent launch", "#e69f00"),
    ("plain_us", "plain product, best of cuBLASLt", "#0072b2"),
    ("batched_beta1_us", "basis + rest by batched cuBLASLt (beta = 1)", "#999999"),
]


def read(path):
    """{tokens: counters} of the shape, the type's name and the device."""
    results = json.loads(path.read_text(encoding="utf-8"))
    points, dtype = {}, ""
    for run in results["benchmarks"]:
        found = re.match(r"projection/(\w+)/d:512/r:128/n:128/M:(\d+)/", run["name"])
        if found:
            dtype = found.group(1)
            points[int(found.group(2))] = run
    return points, dtype, results["context"].get("device", "GPU")


def main():
    if len(sys.argv) > 3 or "--help" in sys.argv:
        sys.exit(__doc__)
    default = [HERE.parent / "results" / "projection_h100_bf16.json", HERE / "projection.svg"]
    given = [pathlib.Path(a) for a in sys.argv[1:]]
    source, output = given + default[len(given) :]
    points, dtype, device = read(source)
    tokens = sorted(points)

    svg = Svg(LEFT + WIDTH + GAP, TOP + HEIGHT + 130)
    svg.text(
        LEFT + WIDTH / 2,
        26,
        f"K/V projection, d = 512, r = 128, 128 heads, {dtype}, {device}",
        size=15,
        weight="bold",
    )
    rate = lambda m, name: m / points[m][name] * 1e6
    values = [rate(m, name) for m in tokens for name, *_ in LINES if points[m].get(name)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    x = lambda m: LEFT + WIDTH * math.log2(m) / math.log2(tokens[-1])
    y = lambda v: TOP + HEIGHT * (1 - (math.log10(v) - low) / (high - low))
    for decade in range(low, high + 1):
        svg.line(LEFT, y(10.0**decade), LEFT + WIDTH, y(10.0**decade), "#dddddd")
        svg.text(LEFT - 6, y(10.0**decade) + 4, "10" + str(decade).translate(SUPERSCRIPT), "end")
    for m in tokens:
        svg.line(x(m), TOP + HEIGHT, x(m), TOP + HEIGHT + 4, "#555555")
        svg.text(x(m), TOP + HEIGHT + 18, m if m < 1024 else f"{m // 1024}k", size=11)
    svg.line(LEFT, TOP, LEFT, TOP + HEIGHT, "#555555")
    svg.line(LEFT, TOP + HEIGHT, LEFT + WIDTH, TOP + HEIGHT, "#555555")
    svg.text(LEFT + WIDTH / 2, TOP + HEIGHT + 38, "tokens of a launch")
    svg.text(LEFT - 48, TOP + HEIGHT / 2, "tokens per second", turn=-90)
    for i, (name, label, colour) in enumerate(reversed(LINES)):
        line = [(x(m), y(rate(m, name))) for m in tokens if points[m].get(name)]
        if not line:
            continue
        svg.path(line, colour)
        for px, py in line:
            svg.parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>')
        row = TOP + HEIGHT + 62 + 18 * (len(LINES) - 1 - i)
        svg.line(LEFT + 20, row - 4, LEFT + 50, row - 4, colour, 2)
        svg.text(LEFT + 58, row, label, "start")
    for m in tokens:  # the ratio, where it is read off: over the topmost line
        best = max(points[m]["ratio_vs_plain"], points[m].get("ratio_vs_plain_dependent", 0))
        top = max(rate(m, name) for name, *_ in LINES if points[m].get(name))
        svg.text(x(m), y(top) - 9, f"{best:.2f}x", size=10)
    svg.save(output)


if __name__ == "__main__":
    main()

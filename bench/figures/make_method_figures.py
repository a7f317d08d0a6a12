#!/usr/bin/env python3
"""Draws the figures of low-rank layers, training and conv-basis attention, and prints their tables.

    bench/figures/make_method_figures.py [RESULTS_FOLDER] [OUTPUT_FOLDER]

Reads low_rank.json, low_rank_models.json, training.json, conv_basis.json and conv_basis_models.json;
writes training_loss.svg, conv_basis_time.svg and conv_basis_perplexity.svg. Needs Python alone.
"""

import json
import math
import pathlib
import sys

from make_figures import GAP, LEFT, PANEL_HEIGHT, PANEL_WIDTH, TOP, BOTTOM, LogAxis, Svg

HERE = pathlib.Path(__file__).resolve().parent
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#999999"]


def figure(panels, title, names):
    """An empty canvas for a row of panels, with a legend of lines."""
    width = LEFT + panels * PANEL_WIDTH + (panels - 1) * GAP + 24
    svg = Svg(width, TOP + PANEL_HEIGHT + BOTTOM + 50)
    svg.text(width / 2, 24, title, size=16, weight="bold")
    bottom = TOP + PANEL_HEIGHT + BOTTOM + 34
    step = (width - 40) / len(names)
    for i, name in enumerate(names):
        svg.line(24 + i * step, bottom - 4, 42 + i * step, bottom - 4, COLOURS[i], 2)
        svg.text(47 + i * step, bottom, name, "start")
    return svg


def panel(svg, index, title, lines, x_label, x_ticks, logarithmic):
    """Lines of (x, y) over a logarithmic y axis; a line of None is left out."""
    left, top = LEFT + index * (PANEL_WIDTH + GAP), TOP + 8
    svg.text(left + PANEL_WIDTH / 2, top - 8, title, weight="bold")
    axis = LogAxis([y for line in lines if line for _, y in line], top)
    axis.draw(svg, left)
    scale = math.log2 if logarithmic else float
    low, high = scale(x_ticks[0][0]), scale(x_ticks[-1][0])
    place = lambda x: left + PANEL_WIDTH * (scale(x) - low) / (high - low)
    for x, label in x_ticks:
        svg.text(place(x), top + PANEL_HEIGHT + 18, label)
    svg.text(left + PANEL_WIDTH / 2, top + PANEL_HEIGHT + 36, x_label)
    for colour, line in zip(COLOURS, lines):
        if line:
            svg.path([(place(x), axis.at(y)) for x, y in line], colour)
    return place, axis


def conv_times(runs):
    """{(name, d, k): {tokens: processor milliseconds}}."""
    times = {}
    for b in runs["benchmarks"]:
        name, *parts = b["name"].split("/")
        at = {k: int(v) for k, v in (p.split(":") for p in parts if ":" in p)}
        times.setdefault((name, at["d"], at.get("k")), {})[at["tokens"]] = b["cpu_time"]
    return times


def exponent(curve):
    """Slope of a least-squares line through the logarithms."""
    x = [math.log(n) for n in curve]
    y = [math.log(t) for t in curve.values()]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def crossover(fast, slow):
    """Tokens from which `fast` stays below `slow`, interpolated in logarithms; None for never."""
    sizes = sorted(fast)
    if fast[sizes[-1]] >= slow[sizes[-1]]:
        return None
    last = max((i for i, n in enumerate(sizes) if fast[n] >= slow[n]), default=None)
    if last is None:
        return sizes[0]
    ratio = [math.log(fast[n] / slow[n]) for n in sizes[last : last + 2]]
    share = ratio[0] / (ratio[0] - ratio[1])
    return round(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)


def conv_basis(results, output):
    times = conv_times(json.loads((results / "conv_basis.json").read_text()))
    terms = sorted({k for n, _, k in times if n == "conv_basis"})
    print("\n| d | k | exponent | crossover, double | crossover, float |")
    names = [f"k = {k}" for k in terms] + ["exact, double", "exact, float"]
    svg = figure(2, "Attention of one head, processor milliseconds (log)", names)
    for index, d in enumerate((32, 64)):
        exact = [times[(f"exact<{t}>", d, None)] for t in ("double", "float")]
        for k in terms:
            curve = times[("conv_basis", d, k)]
            cross = [crossover(curve, e) for e in exact]
            print(f"| {d} | {k} | {exponent(curve):.2f} | {cross[0]} | {cross[1]} |")
        lines = [times[("conv_basis", d, k)] for k in terms] + exact
        ticks = [(256, "256"), (2048, "2048"), (16384, "16384"), (65536, "65536")]
        panel(svg, index, f"d = {d}", [list(l.items()) for l in lines], "tokens", ticks, True)
    gradient = times[("conv_basis_gradient", 16, 4)]
    print("gradient, d = 16, k = 4:", {n: round(t, 1) for n, t in gradient.items()},
          f"exponent {exponent(gradient):.2f}")
    svg.save(output / "conv_basis_time.svg")

    runs = json.loads((results / "conv_basis_models.json").read_text())
    models = sorted({r["model"] for r in runs})
    svg = figure(len(models), "Perplexity with conv-basis attention (log)",
                 ["recover", "even", "exact"])
    for index, model in enumerate(models):
        of = [r for r in runs if r["model"] == model]
        lines = [[(r["k"], r["perplexity"]) for r in of if r["columns"] == c]
                 for c in ("recover", "even")]
        lines.append([(k, of[0]["perplexity_exact"]) for k in (1, 512)])
        ticks = [(k, str(k)) for k in (1, 4, 16, 64, 256, 512)]
        panel(svg, index, model, lines, "k, terms allowed (512 tokens)", ticks, True)
    svg.save(output / "conv_basis_perplexity.svg")


def training(results, output):
    runs = json.loads((results / "training.json").read_text())
    every = runs[0]["steps_a_point"]
    svg = figure(1, "Training loss: mean, lowest, highest", ["plain", "BD"])
    lines, ranges = [], []
    for kind in ("plain", "bd"):
        curves = list(zip(*(r["losses"] for r in runs if r["attention"] == kind)))
        steps = [every * (i + 1) for i in range(len(curves))]
        lines.append([(s, sum(c) / len(c)) for s, c in zip(steps, curves)])
        ranges.append([(s, min(c), max(c)) for s, c in zip(steps, curves)])
    last = lines[0][-1][0]
    ticks = [(every, str(every))] + [(last * i // 4, str(last * i // 4)) for i in range(1, 5)]
    place, axis = panel(svg, 0, "sorting 12 symbols", lines, "step", ticks, False)
    for colour, spread in zip(COLOURS, ranges):
        edge = [(place(s), axis.at(h)) for s, _, h in spread]
        edge += [(place(s), axis.at(l)) for s, l, _ in reversed(spread)]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
        svg.parts.append(f'<polygon points="{text}" fill="{colour}" fill-opacity="0.2"/>')
    svg.save(output / "training_loss.svg")


def low_rank(results):
    print("\n| storage | d | r | tokens | BD, ms | pair / BD | basis first | dense / BD |")
    for b in json.loads((results / "low_rank.json").read_text())["benchmarks"]:
        storage, d, share, tokens = b["name"].split("/")[:4]
        d, share = int(d.split(":")[1]), int(share.split(":")[1])
        print(f"| {storage[9:-1].replace('Eigen::', '')} | {d} | d/{share} | {tokens.split(':')[1]} "
              f"| {b['bd_ms']:.2f} | {b['pair_over_bd']:.3f} | {b['pair_over_bd_basis_first']:.3f} "
              f"| {b['dense_over_bd']:.3f} |")
    for r in json.loads((results / "low_rank_models.json").read_text()):
        bd, pair = r["basis"], r["factor_pair"]
        print(r["model"], {k: [round(r[f][k], 2) for f in ("basis", "factor_pair", "dense")]
                           for k in bd},
              f"tokens/s {100 * (bd['tokens_per_second'] / pair['tokens_per_second'] - 1):+.1f} %,",
              f"model bytes {100 * (bd['model_bytes'] / pair['model_bytes'] - 1):+.1f} %,",
              f"layer bytes {100 * (bd['layer_bytes'] / pair['layer_bytes'] - 1):+.1f} %")


def main():
    if len(sys.argv) > 3 or "--help" in sys.argv:
        sys.exit(__doc__)
    given = [pathlib.Path(a) for a in sys.argv[1:]]
    results, output = given + [HERE.parent / "results", HERE][len(given) :]
    output.mkdir(parents=True, exist_ok=True)
    conv_basis(results, output)
    training(results, output)
    low_rank(results)


if __name__ == "__main__":
    main()

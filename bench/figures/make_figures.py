#!/usr/bin/env python3
"""Draws the README's pictures from the runs that bda_perplexity recorded.

    bench/figures/make_figures.py [bench/results/perplexity.json] [OUTPUT_FOLDER]

Writes residual_per_layer.svg and perplexity_change.svg. Needs Python alone.
"""

import json
import math
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Colours that colour-blind readers can tell apart (Okabe and Ito), each with a shape of its own.
STRATEGIES = {
    "first_r": ("#999999", "square"),
    "last_r": ("#56b4e9", "plus"),
    "residual_min": ("#e69f00", "triangle"),
    "best_slice": ("#009e73", "diamond"),
    "joint_pivot": ("#0072b2", "circle"),
    "latent_rotation": ("#d55e00", "star"),
}
DTYPES = ["fp64", "fp32", "fp16", "bf16"]
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
WINDOWS = 12  # the runs that compare the strategies

PANEL_WIDTH, PANEL_HEIGHT = 330, 230
LEFT, TOP, GAP, BOTTOM = 70, 64, 66, 46


class Svg:
    """A growing SVG document."""

    def __init__(self, width, height):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def line(self, x1, y1, x2, y2, colour, width=1.0):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour}" stroke-width="{width}"/>'
        )

    def path(self, points, colour):
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )

    def text(self, x, y, content, anchor="middle", size=13, weight="normal", turn=None):
        rotate = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}"{rotate}>{content}</text>'
        )

    def marker(self, x, y, strategy, filled=True):
        colour, shape = STRATEGIES[strategy]
        fill = colour if filled else "white"
        style = f'fill="{fill}" stroke="{colour}" stroke-width="1.5"'
        if shape == "circle":
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {style}/>')
            return
        corners = {
            "square": [(-4, -4), (4, -4), (4, 4), (-4, 4)],
            "diamond": [(0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)],
            "triangle": [(0, -5), (5, 4), (-5, 4)],
            "plus": [
                (i * x, j * y)
                for i, j, order in ((1, -1, 1), (1, 1, -1), (-1, 1, 1), (-1, -1, -1))
                for x, y in ((1.8, 5.5), (1.8, 1.8), (5.5, 1.8))[::order]
            ],
            "star": [
                (r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5))
                for k in range(10)
                for r in ((6.5,) if k % 2 == 0 else (2.8,))
            ],
        }[shape]
        points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
        self.parts.append(f'<polygon points="{points}" {style}/>')

    def save(self, path):
        path.write_text("\n".join(self.parts + ["</svg>", ""]), encoding="utf-8")
        print(path)


class LogAxis:
    """Decades from below the smallest value to above the largest, bottom to top of a panel."""

    def __init__(self, values, top):
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)
        self.top = top

    def at(self, value):
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.top + PANEL_HEIGHT * (1 - share)

    def draw(self, svg, left):
        step = max(1, math.ceil((self.high - self.low) / 8))
        for decade in range(self.low, self.high + 1):
            if (self.high - decade) % step:
                continue
            y = self.at(10.0**decade)
            svg.line(left, y, left + PANEL_WIDTH, y, "#dddddd")
            svg.text(left - 6, y + 4, "10" + str(decade).translate(SUPERSCRIPT), "end")
        svg.line(left, self.top, left, self.top + PANEL_HEIGHT, "#555555")
        bottom = self.top + PANEL_HEIGHT
        svg.line(left, bottom, left + PANEL_WIDTH, bottom, "#555555")


def canvas(columns, rows, title, strategies):
    width = LEFT + columns * PANEL_WIDTH + (columns - 1) * GAP + 24
    svg = Svg(width, TOP + rows * (PANEL_HEIGHT + BOTTOM + 26) + 40)
    svg.text(width / 2, 24, title, size=16, weight="bold")
    bottom = TOP + rows * (PANEL_HEIGHT + BOTTOM + 26) + 18
    step = (width - 40) / len(strategies)
    for i, strategy in enumerate(strategies):
        svg.marker(30 + i * step, bottom - 4, strategy)
        svg.text(40 + i * step, bottom, strategy, "start")
    return svg


def panel_origin(index, columns):
    left = LEFT + index % columns * (PANEL_WIDTH + GAP)
    return left, TOP + 8 + index // columns * (PANEL_HEIGHT + BOTTOM + 26)


def draw_residuals(runs, dtype, path):
    """Mean residual over heads, per layer: a row of panels a model, QK beside VO."""
    runs = [r for r in runs if r["dtype"] == dtype and r["rounding"] == "aware" and r["exact"]]
    models = sorted({r["model"] for r in runs})
    strategies = [s for s in STRATEGIES if any(r["basis"] == s for r in runs)]
    svg = canvas(2, len(models), f"Relative residual of the stored product, {dtype}", strategies)
    for row, model in enumerate(models):
        of_model = {r["basis"]: r for r in runs if r["model"] == model}
        for column, side in enumerate(("qk", "vo")):
            left, top = panel_origin(2 * row + column, 2)
            svg.text(left + PANEL_WIDTH / 2, top - 8, f"{model}, {side.upper()}", weight="bold")
            lines = {
                s: [layer[side]["residual_mean"] for layer in of_model[s]["layers"]]
                for s in strategies
                if s in of_model and of_model[s]["layers"][0][side]
            }
            if not lines:
                svg.text(left + PANEL_WIDTH / 2, top + PANEL_HEIGHT / 2, "not exact, not done")
                continue
            axis = LogAxis([v for line in lines.values() for v in line], top)
            axis.draw(svg, left)
            layers = max(len(line) for line in lines.values())
            x_of = [left + PANEL_WIDTH * (i + 0.5) / layers for i in range(layers)]
            for i, x in enumerate(x_of):
                svg.text(x, top + PANEL_HEIGHT + 18, i)
            svg.text(left + PANEL_WIDTH / 2, top + PANEL_HEIGHT + 36, "layer")
            for strategy, line in lines.items():
                points = [(x, axis.at(v)) for x, v in zip(x_of, line)]
                svg.path(points, STRATEGIES[strategy][0])
                for x, y in points:
                    svg.marker(x, y, strategy)
    svg.save(path)


def draw_changes(runs, path):
    """Magnitude of the perplexity change, per storage type: a panel a model. Hollow: it fell."""
    runs = [r for r in runs if r["rounding"] == "aware" and r["exact"]]
    models = sorted({r["model"] for r in runs})
    strategies = [s for s in STRATEGIES if any(r["basis"] == s for r in runs)]
    columns = min(2, len(models))
    title = "Change of perplexity against the original in the same type (hollow: it fell)"
    svg = canvas(2, math.ceil(len(models) / columns), title, strategies)
    for index, model in enumerate(models):
        left, top = panel_origin(index, columns)
        of_model = [r for r in runs if r["model"] == model]
        # Where nothing changed to the last digit, the size of a digit.
        sizes = [max(abs(r["relative_change_percent"]), 1e-14) for r in of_model]
        svg.text(left + PANEL_WIDTH / 2, top - 8, f"{model}, percent", weight="bold")
        axis = LogAxis(sizes, top)
        axis.draw(svg, left)
        for i, dtype in enumerate(DTYPES):
            middle = left + PANEL_WIDTH * (i + 0.5) / len(DTYPES)
            svg.text(middle, top + PANEL_HEIGHT + 18, dtype)
            for run, size in zip(of_model, sizes):
                if run["dtype"] == dtype:
                    place = strategies.index(run["basis"]) - (len(strategies) - 1) / 2
                    grew = run["relative_change_percent"] >= 0
                    svg.marker(middle + 12 * place, axis.at(size), run["basis"], grew)
    svg.save(path)


def main():
    if len(sys.argv) > 3 or "--help" in sys.argv:
        sys.exit(__doc__)
    default = [HERE.parent / "results" / "perplexity.json", HERE]
    given = [pathlib.Path(a) for a in sys.argv[1:]]
    source, output = given + default[len(given) :]
    runs = [r for r in json.loads(source.read_text(encoding="utf-8")) if r["windows"] == WINDOWS]
    if not runs:
        sys.exit(f"{source}: expected runs over {WINDOWS} windows, found none")
    output.mkdir(parents=True, exist_ok=True)
    draw_residuals(runs, "bf16", output / "residual_per_layer.svg")
    draw_changes(runs, output / "perplexity_change.svg")


if __name__ == "__main__":
    main()

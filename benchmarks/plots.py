"""Curves of benchmarks/results as SVG files in benchmarks/plots: one for each file and curve.

python benchmarks/plots.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
AXES = {
    "batch": ("images in a batch", "images/s of PGD-10"),
    "experts": ("experts (constant total width)", "images/s of an attack"),
    "jobs": ("jobs", "CPU seconds of a dry run"),
}
COLOURS = ("#0072B2", "#D55E00", "#009E73")


def curves(content: dict) -> dict[str, list[dict]]:
    """Name of a curve -> its rows with ``case`` and ``points``, each a line of the plot."""
    found: dict[str, list[dict]] = {}
    for row in content.get("rows", []):
        if "curve" in row:
            found.setdefault(row["curve"], []).append(row)
    planned = [row for row in content.get("rows", []) if str(row.get("what")).startswith("snakemake -n, scale paper")]
    if any("jobs" in row for row in planned):  # of dag.py
        points = [{"x": row["jobs"], **row["cpu"], "y": row["cpu"]["seconds"]} for row in planned if "jobs" in row]
        found["jobs"] = [{"case": "snakemake -n", "points": points}]
    return found


def draw(name: str, rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(3.6, 2.5), layout="constrained")
    for row, colour in zip(rows, COLOURS, strict=False):
        xs, ys = ([point[key] for point in row["points"]] for key in ("x", "y"))
        below = [point["y"] - point["low"] for point in row["points"]]
        above = [point["high"] - point["y"] for point in row["points"]]
        axes.errorbar(xs, ys, yerr=[below, above], label=row["case"], color=colour, marker="o", capsize=2)
    scale = "linear" if name == "jobs" else "log"
    axes.set(xlabel=AXES[name][0], ylabel=AXES[name][1], xscale=scale, ylim=(0, None))
    ticks = [point["x"] for point in rows[0]["points"]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    if len(rows) > 1:
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "moat", "font.size": 8}
    (FOLDER / "plots").mkdir(exist_ok=True)
    for file in sorted((FOLDER / "results").glob("*.json")):
        for name, rows in curves(json.loads(file.read_text())).items():
            draw(name, rows, FOLDER / "plots" / f"{file.stem}-{name}.svg")


if __name__ == "__main__":
    main()

"""Draw docs/results.svg: `python docs/make_picture.py [results/evidence/mini]`."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

DOCS = Path(__file__).resolve().parent
METRICS = {"accuracy(clean)": "clean", "accuracy(pgd10)": "PGD-10", "accuracy(worst)": "worst case"}


def points(evidence: Path) -> pd.DataFrame:
    """What the leaderboard of an evidence folder has measured, the best worst case first.

    Returns:
        One row per method, in percent: its ``label``, ``clean``, ``PGD-10`` and ``worst case``, and the 95 % interval
        of the last, ``low`` and ``high``.
    """
    table = pd.read_csv(evidence / "tables" / "unified-leaderboard.csv")
    table["label"] = table["row"].str.split(" / ").str[-1]
    table["shown"] = table["metric"].map(METRICS)
    measured = table[table["shown"].notna() & table["measured"].notna() & (table["protocol"] == "correct")]
    found = measured.pivot(index="label", columns="shown", values="measured")
    worst = measured[measured["shown"] == "worst case"].set_index("label")
    found = found.assign(low=worst["ci_low"], high=worst["ci_high"]).dropna(subset=["worst case"])
    return found.reset_index().sort_values(["worst case", "label"], ascending=[False, True], ignore_index=True)


def draw(found: pd.DataFrame, out: Path) -> None:
    """Write the picture; the same numbers give the same file where matplotlib is the same."""
    with plt.rc_context({"svg.hashsalt": "moat", "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7.5, 0.8 + 0.36 * len(found)), layout="constrained")
        y = range(len(found))
        axes.hlines(y, found["worst case"], found["PGD-10"], color="0.8", linewidth=4)
        axes.hlines(y, found["low"], found["high"], color="#d55e00", linewidth=1)
        marks = {"clean": ("#999999", "|"), "PGD-10": ("#0072b2", "o"), "worst case": ("#d55e00", "D")}
        for column, (color, marker) in marks.items():
            label = {"worst case": "worst case of all attacks, 95 % interval"}.get(column, column)
            axes.scatter(found[column], y, color=color, marker=marker, s=60, label=label, zorder=3)
        axes.set_yticks(y, found["label"])
        axes.invert_yaxis()
        axes.set(xlim=(0, None), xlabel="images classified correctly (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)
        # The numbers go with the picture, so that it can be told whether it is of today's evidence.
        figure.savefig(out, metadata={"Date": None, "Description": found.to_csv(index=False)})
        plt.close(figure)


if __name__ == "__main__":
    draw(points(Path(sys.argv[1]) if sys.argv[1:] else DOCS.parent / "results/evidence/mini"), DOCS / "results.svg")

"""The table in benchmarks/README.md, written from the targets and all files in benchmarks/results.

    python benchmarks/table.py [--check]

It has the `rows` of each file whose `id` is in targets.yaml, and a line for every case that no file has measured.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
BEGIN, END = "<!-- table: python benchmarks/table.py -->", "<!-- end of table -->"
LAYERS = "<!-- convolution: python benchmarks/table.py -->", "<!-- end of convolution -->"
HEAD = ("#", "what", "against", "floor", "aim", "measured (range, n)", "met", "equality")


def measured(folder: Path) -> dict[int, list[dict]]:
    """Number of a row -> its rows in all files, each with ``machine``, the file's name."""
    found: dict[int, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text()).get("rows", []):
            if "id" in row:
                found.setdefault(int(row["id"]), []).append({**row, "machine": path.stem})
    return found


def table(targets: dict[int, dict], found: dict[int, list[dict]]) -> list[str]:
    """The table as lines of Markdown."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for number, target in targets.items():
        rows = found.get(number, [])
        lines += [_line(_cells(number, target, row)) for row in rows]
        done = {row["case"] for row in rows if "case" in row}
        for case, (floor, aim) in target["cases"].items():
            if case not in done and (done or not rows):
                why = "not measured" + (f": {target['not_measured']}" if "not_measured" in target else "")
                about = [str(number), _with_case(target["what"], case), target["against"], _times(floor), _times(aim)]
                lines.append(_line([*about, why, "-", "-"]))
    return lines


def _cells(number: int, target: dict, row: dict) -> list[str]:
    about = [str(number), _with_case(row.get("what", target["what"]), row.get("case", ""))]
    about += [row.get("against", target["against"]), _times(row["floor"]), _times(row["aim"])]
    if row["ratio"] is None:
        return [*about, f"not measured: {row['not_measured']}", "-", "-"]
    return [*about, _figure(row), met(row), equality(row)]


def _figure(measured: dict) -> str:
    of = f"{measured['ratio']:.3g} {measured['unit']}" if "unit" in measured else _times(measured["ratio"])
    return f"{of} ({measured['low']:.3g} to {measured['high']:.3g}, {measured['n']})"


def met(row: dict) -> str:
    """Which of the two targets the median reaches."""
    if row["floor"] is None:
        return "-"
    floor, aim = without_unit(row["floor"]), without_unit(row["aim"])
    # Fewer hours and less memory are better.
    sign = -1 if aim < floor else 1
    if sign * row["ratio"] >= sign * aim:
        return "aim"
    return "floor" if sign * row["ratio"] >= sign * floor else "**no**"


def without_unit(wanted: float | str) -> float:
    """The number in "45 %", "7 h" or "8 GB"."""
    return float(wanted.split()[0]) if isinstance(wanted, str) else wanted


def equality(row: dict) -> str:
    """How equal the results of both sides were in the same command."""
    exact = row.get("exact") or {}
    if isinstance(exact, str):  # AutoAttack says it in words
        return exact
    said = [f"{float(exact[key]):.0e} in float64" for key in exact if key == "float64_largest_difference"]
    of_parts = [value for key, value in exact.items() if key.startswith("float64_") and key.endswith("_ours")]
    said += [f"{max(of_parts):.0e} in float64"] if of_parts else []
    differ, count = (exact.get("verdicts_that_differ"), exact.get("verdicts"))
    if differ is None:
        differ, count = row.get("differences"), row.get("images")
    if differ is not None:
        said.append(f"{differ} of {count} verdicts differ" if count else f"{differ} verdicts differ")
    elif exact.get("verdicts"):
        said.append("verdicts not counted: no trained run")
    return "; ".join(said) or "-"


def layers(folder: Path) -> list[str]:
    """The rows of convolution.py in all files, as lines of Markdown."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text()).get("rows", []):
            if not row.get("case", "").startswith("convolution, "):
                continue
            names = list(row["us_per_image"])
            if not lines:
                head = ["layer", "faster (range, n)", *(f"{name}: us, rounding" for name in names)]
                head += ["training, or the images' gradient, faster (range, n)", "ours, PyTorch's: us"]
                lines += [_line(head), _line(["---"] * len(head))]
            taken, errors = row["us_per_image"], row["rounding"]
            each = [f"{taken[name]:g}, {errors[name]:.1e}" if name in taken else "-" for name in names]
            lines.append(_line([row["case"].removeprefix("convolution, "), _figure(row), *each, *_training(row)]))
    return lines


def _training(row: dict) -> tuple[str, str]:
    said = row.get("training") or row.get("gradient")
    if said is None:
        return "not measured", "-"
    return _figure(said), ", ".join(f"{us:g}" for us in said["us_per_image"].values())


def _with_case(what: str, case: str) -> str:
    return f"{what}; {case}" if case else what


def _times(value) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}x"


def _line(cells) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def page(text: str, lines: list[str], marks: tuple[str, str] = (BEGIN, END)) -> str:
    """``text`` with ``lines`` between two marks."""
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n" + "\n".join(lines) + f"\n{marks[1]}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if the page is not up to date"
    )
    check = parser.parse_args().check
    targets = yaml.safe_load((FOLDER / "targets.yaml").read_text())
    text = README.read_text()
    new = page(text, table(targets, measured(FOLDER / "results")))
    new = page(new, layers(FOLDER / "results"), LAYERS)
    if check:
        sys.exit(f"{README}: python benchmarks/table.py brings it up to date" if new != text else 0)
    README.write_text(new)


if __name__ == "__main__":
    main()

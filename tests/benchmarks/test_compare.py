"""Two checkouts are compared in turns: whose calls are made when, what is reported, and that every case can be made."""

import argparse
import json
import sys
from pathlib import Path

import pytest

import attack
import compare
import mixture
import moe
import own_side
from benchlib import records

ROOT = Path(__file__).parents[2]

# A stand-in for own_side.py: calls take 2 s before and 1 s after, and each is logged.
SCRIPT = """
import json, os, sys
if sys.argv[-1] == "--list":
    print("4: width 8\\n4: width 16\\n7: width 8")
    sys.exit()
name = os.path.basename(sys.argv[2])
print("ready", flush=True)
for number, _ in enumerate(sys.stdin):
    with open(sys.argv[sys.argv.index("--log") + 1], "a") as log:
        print(name, os.getpid(), os.environ["PYTHONPATH"].split(":")[0], file=log)
    seconds = {"before": 2.0, "after": 1.0}[name] + number
    print(json.dumps({"cpu": seconds, "wall": 3 * seconds}), flush=True)
"""


@pytest.fixture
def checkouts(tmp_path, monkeypatch):
    for name in ("before", "after"):
        (tmp_path / name / "benchmarks").mkdir(parents=True)
        (tmp_path / name / "benchmarks" / "own_side.py").write_text(SCRIPT)
    return tmp_path


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    """The sets of cores that were asked for: this process itself stays as it is."""
    cores = []
    monkeypatch.setattr(compare.os, "sched_setaffinity", lambda pid, asked: cores.append(asked))
    return cores


def run(checkouts, monkeypatch, *options):
    log = checkouts / "log"
    argv = ["compare.py", str(checkouts / "before"), str(checkouts / "after"), *options, "--", "--log", str(log)]
    monkeypatch.setattr(sys, "argv", argv)
    code = compare.main()
    return code, [entry.split() for entry in log.read_text().splitlines()] if log.exists() else []


def test_both_take_turns_on_one_core_with_their_own_sources(checkouts, monkeypatch, capsys, pinned):
    out = checkouts / "out.json"
    options = ("--cases", "4: width 16;7", "--processes", "2", "--repeats", "2", "--core", "3", "--out", str(out))
    code, log = run(checkouts, monkeypatch, *options)
    assert code == 0 and pinned == [{3}]
    # A warm-up and two pairs, for two pairs of processes, for two cases.
    assert [entry[0] for entry in log] == ["before", "after", "after", "before", "before", "after"] * 4
    assert len({entry[1] for entry in log}) == 8
    assert {entry[-1] for entry in log} == {str(checkouts / name / "src") for name in ("before", "after")}
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows] == ["4: width 16", "7: width 8"]
    # The first call of each process, the warm-up, is not counted.
    assert rows[0]["cpu"]["before"] == [3.0, 4.0] * 2 and rows[0]["cpu"]["after"] == [2.0, 3.0] * 2
    assert rows[0]["cpu"]["ratio"] == {"median": round((2 / 3 + 3 / 4) / 2, 4), "low": 0.6667, "high": 0.75, "n": 4}
    assert rows[0]["wall"]["medians"] == {"before": 10.5, "after": 7.5}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["case", "4: width 16", "7: width 8"]


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("import sys\nsys.exit('broken')", "--list"),
        (SCRIPT.replace("name =", "sys.exit('broken')\nname ="), "--case 4: width 16"),
        (SCRIPT + "    sys.exit('broken')\n", "--case 4: width 16"),
    ],
    ids=["before it lists its cases", "before it is ready", "after a call"],
)
def test_a_script_that_fails_is_named(checkouts, monkeypatch, capfd, script, options):
    other = checkouts / "other.py"
    other.write_text(script)
    assert run(checkouts, monkeypatch, "--cases", "4: width 16", "--after-script", str(other))[0] == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "broken" and lines[1].startswith("benchmarks/compare.py: ") and lines[1].endswith(", see above")
    assert f"{other} --project {checkouts / 'after'} {options}" in lines[1] and "exit code 1" in lines[1]


def test_every_row_from_1_to_9_has_its_cases():
    assert sorted({int(case.split(":")[0]) for case in own_side.CASES}) == [1, 2, 3, 4, 6, 7, 8, 9]
    of_table = {f"8: {case}" for case in records.targets(ROOT)[8]["cases"]}
    assert of_table == {case for case in own_side.CASES if case.startswith("8: ")}


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    ["1: width 64", "2: 2 experts", "3: routed", "3: dense", "4: width 16", "6: width 16", "7: width 16",
     "8: dwf, width 4, update", "8: mocse, width 4, attack step"],
)  # fmt: skip
def test_a_case_can_be_called(case, monkeypatch):
    monkeypatch.setattr(own_side, "WIDTH", 8)
    monkeypatch.setattr(moe, "BATCH", 4)
    monkeypatch.setattr(moe, "RECIPES_BATCH", 4)
    monkeypatch.setattr(attack, "BATCHES", {64: 2, 16: 2})
    monkeypatch.setattr(mixture, "BATCHES", {64: 2, 16: 2, 4: 2})
    call = own_side.CASES[case](argparse.Namespace(project=ROOT))
    call()
    call()

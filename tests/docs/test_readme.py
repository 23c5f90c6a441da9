"""README.md and the other pages are true: what they name is there, what they print is what is printed."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml

from moat.commands.cli import build_parser
from moat.config.project import Project

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md", "benchmarks/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
EVIDENCE = ROOT / "results/evidence/mini"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


# -- commands, options, names --------------------------------------------------------
def commands(page: str) -> list[str]:
    """The lines of a page's code blocks that call moat."""
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line.split("  #")[0].strip() for line in lines if line.strip().startswith("moat ")]
    return [line for line in found if "…" not in line and "..." not in line]


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line[:60]}" for page, line in COMMANDS])
def test_commands_are_understood(page, line):
    # SystemExit here: the parser knows no such command or option.
    build_parser().parse_args(shlex.split(re.sub(r" (&&|\||>).*", "", line))[1:])


def test_the_scales_are_those_that_there_are():
    table = README[README.index("| scale | data |") :].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert sorted(named) == Project(ROOT).names("scales")


@pytest.mark.parametrize("page", PAGES)
def test_make_has_the_targets_that_are_named(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)[^`]*`", text)) | set(
        re.findall(r"^(?:[A-Z_]+=\S+ )?make ([a-z-]+)", text, flags=re.MULTILINE)
    )
    assert named <= targets


def slug(heading: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, "results/evidence/mini/README.md"])
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            headings = [heading.replace("&lt;", "<").replace("&gt;", ">") for heading in headings]
            assert anchor in [slug(heading) for heading in headings], f"{page}: {target}"


# -- what is shown -------------------------------------------------------------------
def test_the_python_is_the_example_and_so_is_its_output():
    # tests/commands/test_api.py runs the example.
    assert blocks(README, "python")[0] in (ROOT / "docs/example.py").read_text()
    assert blocks(README, "text") == [(ROOT / "docs/example.txt").read_text()]


def test_the_end_of_the_quickstart_is_what_make_prints():
    said = re.search(r"^NEXT := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    said = re.sub(r"\s*\\\n\s*", " ", said).replace("\\n", "\n").replace("$(BIN)", ".venv/bin")
    shown = README[README.index("Next: make smoke") :].split("```")[0]
    assert [line.strip() for line in shown.splitlines()] == [line.strip() for line in said.splitlines()]


def test_the_picture_is_of_the_committed_evidence():
    spec = importlib.util.spec_from_file_location("make_picture", ROOT / "docs/make_picture.py")
    make_picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_picture)
    found = make_picture.points(EVIDENCE)
    drawn = ElementTree.parse(ROOT / "docs/results.svg").findtext(".//{http://purl.org/dc/elements/1.1/}description")
    assert drawn.strip() == found.to_csv(index=False).strip(), "`python docs/make_picture.py` draws it again"
    assert len(found) == 10 and (found["low"] <= found["worst case"]).all()


def test_the_numbers_of_the_mini_run_are_those_of_its_table():
    table = pd.read_csv(EVIDENCE / "tables/unified-leaderboard.csv")
    of = table[(table["method"] == "pgd-at-moe") & (table["protocol"] == "correct")].set_index("metric")["measured"]
    through, detached = of["accuracy(pgd10)"], of["accuracy(pgd10_det)"]
    section = README[README.index("## The mini run") : README.index("## How fast")]
    assert re.findall(r"([\d.]+) %", section) == [f"{through:.1f}", f"{detached:.1f}"]


SPEEDS = {"PGD-10 on ResNet-18": 4, "AutoAttack on a defended ResNet-18, the same verdicts": 9}
SPEEDS |= {"a training step of ADVMoE": 1, "a step of TRADES": 7}


@pytest.mark.parametrize("what", SPEEDS)
def test_speeds_are_the_measured_ranges(what):
    measured = json.loads((ROOT / "benchmarks/results/amd-epyc-2-cores.json").read_text())
    assert measured["hardware"]["cpu"] == "AMD EPYC" and "avx512" in measured["hardware"]["compiled_convolutions"]
    rows = [row for row in measured["rows"] if row.get("id") == SPEEDS[what]]
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    said = next(line for line in README.splitlines() if line.startswith(f"| {what} |"))
    assert said.split("|")[3].strip() == f"{low:.1f} to {high:.1f}"


def test_the_papers_to_cite_are_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    bibtex = " ".join(re.sub(r"[{}]", "", blocks(README, "bibtex")[0]).split())
    for paper in cited:
        assert f"title = {paper['title']}," in bibtex
        assert " and ".join(f"{who['family-names']}, {who['given-names']}" for who in paper["authors"]) in bibtex
    studies = [yaml.safe_load(path.read_text()) for path in (ROOT / "config/studies").glob("*.yaml")]
    shown = {study["reference"]["title"]: study["reference"] for study in studies if "paper" in study}
    assert len(cited) == 4 and sorted(shown) == sorted(paper["title"] for paper in cited)
    for paper in cited:
        names = [who["family-names"] for who in paper["authors"]]
        reference = shown[paper["title"]]
        assert reference["authors"] == f"{', '.join(names[:-1])} and {names[-1]}"
        assert reference.get("url") == paper.get("url") and str(paper.get("year", "")) in reference.get("where", "")

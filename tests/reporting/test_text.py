"""Markdown and LaTeX say what the CSV says, and nothing bare."""

import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import jinja2
import pytest
from reporting_tree import ROOT, cells, expected_text

from moat.reporting import latex, markdown
from moat.reporting.formatting import duration, plain, quantity
from moat.reporting.layout import _mark

# What a table says that it needs.
NEEDED = re.compile(r"^% needs \\usepackage\{(.*)\}$", re.M)


def rows_with_a_number(content):
    """Those that are printed: at least one cell has a measured or a published number."""
    has = (content["verdict"] != "not-run") | (content["published"] != "")
    return content[has.groupby(content["row"]).transform("any")]


@pytest.mark.parametrize("name", ["unified-leaderboard", "dramoe-table2"])
def test_markdown_agrees_with_the_csv(built, name):
    content = rows_with_a_number(cells(built, name))
    text = (built.base / "tables" / f"{name}.md").read_text()
    body = [line for line in text.splitlines() if line.startswith("| ")][2:]
    printed = [cell for line in body for cell in re.split(r"(?<!\\)\|", line)[2:-1]]
    assert len(printed) == len(content)
    for cell, row in zip(printed, content.to_dict("records"), strict=True):
        said = re.sub(r"<sup>.*?</sup>", "", cell.split("<br>")[0]).replace("\\", "").strip()
        said = re.sub(r"\[([\d.]+)\]\(\.\./runs/[\w/-]+/run\.json\)", r"\1", said)
        assert said == expected_text(row)
        assert (
            (f"*published {float(row['published']):g}" in cell) if row["published"] != "" else ("published" not in cell)
        )
        assert row["verdict"] not in ("not-run", "unverified") or "<sup>" in cell
    # What holds of all numbers has no mark at each.
    assert "<sup>all</sup> stand-in: dataset digits in place of cifar10" in text
    reasons = {reason for row in content["checks_failed"] for reason in row.split(";") if reason}
    assert ("monotone-epsilon" in reasons) and ("the check monotone-epsilon failed" in text)


@pytest.mark.parametrize("name", ["unified-leaderboard", "dramoe-table2"])
def test_latex_agrees_with_the_csv_and_is_well_formed(built, name):
    content = rows_with_a_number(cells(built, name))
    text = (built.base / "tables" / f"{name}.tex").read_text()
    bare = re.sub(r"\\.", "", text)
    assert bare.count("{") == bare.count("}")
    assert [
        text.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule", "\\begin{tabular}", "\\end{tabular}")
    ] == [1] * 5
    assert not re.search(r"(?<!\\)[%#$_&]", re.sub(r"^% needs.*|\$\\pm\$| & |& |\\label\{.*?\}", "", text, flags=re.M))
    columns = re.search(r"\\begin\{tabular\}\{(l(r+))\}", text).group(1)
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert all(line.endswith(" \\\\") and len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in body)
    measured = [line for line in body if not line.startswith((" & ", "\\emph{"))]
    printed = [cell for line in measured for cell in re.split(r"(?<!\\)&", line.removesuffix(" \\\\"))[1:]]
    said = [re.sub(r"\\textsuperscript\{.*?\}", "", cell).strip() for cell in printed]
    assert said == [expected_text(row) for row in content.to_dict("records")]
    assert "the check monotone-epsilon failed" in text
    assert f"\\label{{tab:{name}}}" in text


def test_latex_compiles_and_fits_the_page(built, tmp_path):
    if not shutil.which("pdflatex"):
        assert "MOAT_NEED_LATEX" not in os.environ, "pdflatex was installed for this test, and is not found"
        pytest.skip("LaTeX tables are not compiled: there is no pdflatex (Debian: texlive-latex-recommended)")
    tables = sorted((built.base / "tables").glob("*.tex"))
    packages = {name for table in tables for name in NEEDED.search(table.read_text()).group(1).split(",")}
    document = "\\documentclass{article}\n\\usepackage{%s}\n\\begin{document}\n%s\n\\end{document}\n"
    inputs = [f"\\input{{{table}}}\\clearpage" for table in tables]
    (tmp_path / "all.tex").write_text(document % (",".join(sorted(packages)), "\n".join(inputs)))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    too_wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)]
    assert not [points for points in too_wide if points > 20], done.stdout


@pytest.mark.parametrize("suffix", ["md", "tex"])
def test_stand_ins_are_said_in_every_table(built, suffix):
    assert "digits in place of cifar10" in (built.base / "tables" / f"unified-leaderboard.{suffix}").read_text()


@pytest.mark.parametrize("name", ["workflow", "table", "figure", "page"])
def test_captions_of_the_workflow_report(name):
    wildcards = SimpleNamespace(study="dramoe", item="table2", scale="mini")
    snakemake = SimpleNamespace(wildcards=wildcards, config={"scale": "mini", "studies": ["dramoe", "unified"]})
    source = (ROOT / "workflow/report" / f"{name}.rst").read_text()
    text = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(source).render(snakemake=snakemake)
    assert "mini" in text and "{" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % & more", r"50 \% \& more"),
        ("a_b^c~{d}", r"a\_b\textasciicircum{}c\textasciitilde{}\{d\}"),
        ("\\", r"\textbackslash{}"),
    ],
)
def test_latex_escapes(text, expected):
    assert latex.escape(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("1 [0, 2]", "1 [0, 2]"),
        ("[x](y)", r"\[x](y)"),
        ("a_b *c* <d>", r"a\_b \*c\* \<d\>"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_escapes(text, expected):
    assert markdown.escape(text) == expected


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (duration, None, None),
        (duration, 3.21, "3.2 s"),
        (duration, 9.96, "10 s"),
        (duration, 59.6, "1 min 0 s"),
        (duration, 7620, "2 h 7 min"),
        (quantity, 11173962, "11.17 M"),
        (quantity, 0.5, "0.5"),
        (quantity, None, "–"),
        (plain, {"a": 0.123456, "b": [1, True]}, "a 0.1235, b 1, yes"),
        (plain, None, "–"),
        (_mark, 27, "ab"),
    ],
)
def test_numbers_for_people(function, value, expected):
    assert function(value) == expected

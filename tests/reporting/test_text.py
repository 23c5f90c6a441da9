"""Markdown, LaTeX and the page say what the CSV says, and nothing bare."""

import html.parser
import re
from types import SimpleNamespace

import jinja2
import pandas as pd
import pytest
from reporting_tree import ROOT, Tree, edit_yaml

from moat.reporting import latex, markdown
from moat.reporting.layout import _mark
from moat.reporting.records import duration, quantity, show

NUMBER = re.compile(r"\d+\.\d \[\d+\.\d, \d+\.\d\]")


@pytest.fixture
def built(tree, moat, project):
    """Tables, a figure and the page, with awkward characters, a failed gate and a method that did not run."""
    tree.sources = {"nets": "0" * 16}

    def awkward(content):
        table = content["tables"]["leaderboard"]
        table["title"] = "100 % of a_b & <c> | d # $e ~ ^ {f} \\g"
        table["columns"][0]["points"][1]["label"] = "FG_SM & 50 % <b>"

    edit_yaml(project / "config/studies/unified.yaml", awkward)
    tree.everything(methods=["standard", "pgd-at"], failed={"pgd-at": ("monotone-epsilon",)})
    for command in (["tabulate"], ["tabulate", "--cells"], ["draw"], ["report"]):
        assert moat(*command) == 0
    return tree


def cells(tree: Tree, name: str) -> pd.DataFrame:
    return pd.read_csv(tree.base / "tables" / f"{name}.csv", keep_default_na=False, na_values={"measured": [""]})


def expected_text(row: dict) -> str:
    """A cell's text, from its row in the CSV."""
    if row["verdict"] == "not-run":
        return "not run"
    number = f"{row['measured']:.1f} [{float(row['ci_low']):.1f}, {float(row['ci_high']):.1f}]"
    return f"unverified: {number}" if row["verdict"] == "unverified" else number


@pytest.mark.parametrize("name", ["unified-leaderboard", "dramoe-table2"])
def test_markdown_agrees_with_the_csv(built, name):
    content = cells(built, name)
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
    reasons = {reason for row in content["gates_failed"] for reason in row.split(";") if reason}
    assert ("monotone-epsilon" in reasons) and ("the gate monotone-epsilon failed" in text)


@pytest.mark.parametrize("name", ["unified-leaderboard", "dramoe-table2"])
def test_latex_agrees_with_the_csv_and_is_well_formed(built, name):
    content = cells(built, name)
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
    measured = [line for line in body if not line.startswith(" & ")]
    printed = [cell for line in measured for cell in re.split(r"(?<!\\)&", line.removesuffix(" \\\\"))[1:]]
    said = [re.sub(r"\\textsuperscript\{.*?\}", "", cell).strip() for cell in printed]
    assert said == [expected_text(row) for row in content.to_dict("records")]
    assert "the gate monotone-epsilon failed" in text
    assert f"\\label{{tab:{name}}}" in text


def test_stand_ins_are_said_everywhere(built):
    for suffix in ("md", "tex"):
        assert "digits in place of cifar10" in (built.base / "tables" / f"unified-leaderboard.{suffix}").read_text()
    assert "<code>digits</code> in place of <code>cifar10</code>" in page(built)


class Reader(html.parser.HTMLParser):
    """Collects addresses, ids and the text of table cells; checks that elements close in order."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.targets, self.cells = [], [], [], [], []
        self.hidden = 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "srcset", "action") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.targets += [attrs["popovertarget"]] if "popovertarget" in attrs else []
        if tag == "td" and "entry" in attrs.get("class", ""):
            self.cells.append("")
        self.hidden += "popover" in attrs or bool(self.hidden and tag not in self.VOID)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()
        self.hidden = max(0, self.hidden - 1)

    def handle_data(self, data):
        if "td" in self.open and self.cells and not self.hidden:
            self.cells[-1] += data


def page(tree: Tree) -> str:
    return (tree.base / "report.html").read_text()


def read(tree: Tree) -> Reader:
    reader = Reader()
    reader.feed(page(tree))
    assert reader.open == []
    return reader


def test_page_is_self_contained_and_consistent(built):
    reader, text = read(built), page(built)
    assert len(text) < 2_000_000
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:[^\"]+", "", text))
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.targets) <= set(reader.ids)
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)
    assert any(address.startswith("data:image/png;base64,") for address in reader.addresses)
    for needed in ("prefers-color-scheme: dark", "@media print", "tabular-nums", 'name="viewport"'):
        assert needed in text


def test_every_number_on_the_page_is_in_the_tables(built):
    printed = [re.sub(r"\s+", " ", cell).strip() for cell in read(built).cells]
    rows = [*cells(built, "unified-leaderboard").to_dict("records"), *cells(built, "dramoe-table2").to_dict("records")]
    assert len(printed) == len(rows)
    for cell, row in zip(printed, rows, strict=True):
        number = NUMBER.search(re.sub(r"(\d)(?:[a-z]|,(?=[a-z]))+ \[", r"\1 [", cell))
        expected = expected_text(row)
        if row["verdict"] == "not-run":
            assert number is None and cell.startswith("not run")
        else:
            assert number.group() == expected.removeprefix("unverified: ")
            assert cell.startswith("unverified ") == (row["verdict"] == "unverified")


def test_page_tells_origin_gates_staleness_and_gaps(built):
    text = page(built)
    for needed in (
        "results/quickstart/evaluations/digits/resnet18/pgd-at/seed0/dramoe.parquet",
        "snakemake --cores all results/quickstart/tables/dramoe-table2.csv --config scale=quickstart",
        "Not comparable with published numbers",
        "stale: nets",
        "failed: monotone-epsilon",
        "not evaluated yet",
        "the method mart is not part of scale quickstart",
        "A &lt;fast&gt; CPU &amp; more, 2 cores",
        "FG_SM &amp; 50 % &lt;b&gt;",
        "1,234",
    ):
        assert needed in text, needed
    assert "<b> <" not in text


def test_page_without_any_result(tree, moat):
    assert moat("report") == 0
    assert "Nothing has been trained at this scale yet" in page(tree)
    assert not NUMBER.search(re.sub(r"<details class=\"reading\">.*?</details>", "", page(tree), flags=re.S))
    assert all(cell.strip().startswith("not run") for cell in read(tree).cells)


def test_stale_is_not_said_of_current_results(tree, moat):
    tree.everything()
    assert moat("report") == 0
    assert "tag stale" not in page(tree)
    assert "results are stale" not in page(tree)


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
        (show, {"a": 0.123456, "b": [1, True]}, "a 0.1235, b 1, yes"),
        (show, None, "–"),
        (_mark, 27, "ab"),
    ],
)
def test_numbers_for_people(function, value, expected):
    assert function(value) == expected

"""The page says what the tables say, is one file, and every number on it leads back to its rows."""

import html.parser
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from reporting_tree import Tree, cells, expected_text, make_stale

from moat.reporting import cards
from moat.reporting.page import _split_caption
from moat.reporting.tables import count_published, read_cells
from project_copy import edit_yaml

NUMBER = re.compile(r"\d+\.\d \[\d+\.\d, \d+\.\d\]")
TABLES = ("unified-leaderboard", "dramoe-table2")


class Reader(html.parser.HTMLParser):
    """Collects addresses, ids, cards that are asked for and the text of cells; checks that elements close in order."""

    VOID = {"meta", "img", "br", "wbr", "link", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.addresses, self.ids, self.asked, self.cells = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "srcset", "action") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.asked += [attrs["data-card"]] if "data-card" in attrs else []
        if tag == "td" and "entry" in attrs.get("class", ""):
            self.cells.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if "td" in self.open and self.cells:
            self.cells[-1] += data


def page(tree: Tree) -> str:
    return (tree.base / "report.html").read_text()


def cards_of(text: str) -> dict[str, dict]:
    """id -> {what: [values]} of every card."""
    found = json.loads(re.search(r'id="cards" data-below="results/smoke/">(.*?)</script>', text, re.S).group(1))
    return {key: lines_of(card) for key, card in found.items()}


def lines_of(card: dict) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    for what, value in card["lines"]:
        lines.setdefault(what, []).append(value)
    return lines


def test_page_is_one_file(built):
    text = page(built)
    reader = Reader(text)
    assert len(text) < 2_000_000
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:[^\"]+", "", text))
    assert len(reader.ids) == len(set(reader.ids))
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)
    linked = [address for address in reader.addresses if not address.startswith(("data:", "#"))]
    assert len(linked) == 4 + 2  # rows of four evaluations, two figures as PDF
    assert all((built.base / address).is_file() for address in linked)
    assert sum(address.startswith("data:image/") for address in reader.addresses) == 2


def test_every_card_is_asked_for_and_leads_to_files(built):
    text = page(built)
    assert sorted(Reader(text).asked) == sorted(cards_of(text))
    below = "results/smoke/"
    values = [value for card in cards_of(text).values() for said in card.values() for value in said]
    linked = {value.removeprefix(below) for value in values if value.startswith(below)}
    assert len(linked) == 2 * 3  # of two runs: the record, the rows, the checks
    assert all((built.base / address).is_file() for address in linked)


def test_every_number_on_the_page_is_in_the_tables(built):
    printed = [re.sub(r"\s+", " ", cell).strip() for cell in Reader(page(built)).cells]
    rows = [row for name in TABLES for row in cells(built, name).to_dict("records")]
    assert len(printed) == len(rows)
    for cell, row in zip(printed, rows, strict=True):
        number = NUMBER.search(re.sub(r"(\d)(?:[a-z]|,(?=[a-z]))+ \[", r"\1 [", cell))
        expected = expected_text(row)
        if row["verdict"] == "not-run":
            assert number is None and cell.startswith("not run")
        else:
            assert number.group() == expected.removeprefix("unverified: ")
            assert cell.startswith("unverified ") == (row["verdict"] == "unverified")


def test_a_card_says_where_its_number_comes_from(built):
    found = cards_of(page(built))
    for name, columns in zip(TABLES, (7, 4), strict=True):
        for number, row in enumerate(cells(built, name).to_dict("records")):
            lines = found[cards.cell_id(name, *divmod(number, columns))]
            run = f"{row['dataset']}/{row['arch']}/{row['method']}/seed0"
            assert lines["verdict"] == [row["verdict"] or "measured"]
            if row["verdict"] == "not-run":
                assert lines["why"] and "measured" not in lines
                continue
            assert lines["measured"] == [f"{expected_text(row).removeprefix('unverified: ')} %"]
            assert lines["examples"] == [f"{row['n']} per seed"] and lines["seeds"] == ["1 (number 0)"]
            assert lines["metric"] == [f"{row['metric']}, protocol correct"]
            assert lines["run"] == [f"results/smoke/runs/{run}/run.json"]
            assert lines["rows"] == [f"results/smoke/evaluations/{run}/dramoe.parquet"]
            assert lines["checks"] == [f"results/smoke/checks/{run}.json"]
            made = f"snakemake --cores all {lines['rows'][0]} {lines['checks'][0]} --config scale=smoke"
            assert lines["made by"] == [made]
            assert ("the check monotone-epsilon failed" in lines.get("why", [])) == (row["method"] == "pgd-at")


def test_from_a_cell_back_to_its_rows(built):
    found = cards_of(page(built))["unified-leaderboard-0-3"]
    rows = pd.read_parquet(built.root / Path(found["rows"][0]).relative_to("results"))
    accuracy = 100 * rows[rows["setting"] == "pgd10"]["correct"].mean()
    assert found["measured"][0].startswith(f"{accuracy:.1f} [")


def test_what_was_decided_stands_once_and_every_run_leads_to_its_own(built):
    text, runs = page(built), [path.parts[-3] for path in (built.base / "runs").glob("*/*/*/*/run.json")]
    assert text.count("in bfloat16 &amp; float32") == 1
    assert [text.count(f"<dd>that of {method}</dd>") for method in runs] == [1] * len(runs)
    # Every link of the page leads to an id on it: see above.
    assert sum(address.startswith("#deviations-") for address in Reader(text).addresses) == len(runs) > 1


def test_overview_counts_the_published_cells(built):
    counts = count_published(read_cells(built.base / "tables/cells.csv"))
    tiles = re.findall(r'<b class="name">([\w ]+)</b> <span class="number">(\d+)</span>', page(built))
    assert [(name, int(count)) for name, count in tiles] == list(counts.items())
    assert f"What became of the {sum(counts.values())} published numbers" in page(built)
    assert counts["unverified"] == 2 and counts["not run"] == 58


def test_the_page_begins_with_a_sentence_for_each_paper(tree, moat):
    """What was published and measured, what it indicates, and what the leaderboard has of the paper's method."""
    edit_yaml(
        tree.root.parent / "config/claims.yaml", lambda content: content["trades-over-pgd-at"].update(headline=True)
    )
    edit_yaml(tree.root.parent / "config/studies/dramoe.yaml", lambda content: content.update(paper="TRADES"))
    tree.everything(methods=["pgd-at", "trades"])
    assert moat("tabulate") == moat("report") == 0
    text = page(tree)
    first = text[text.index('<li id="paper-TRADES">') : text.index("</ul>", text.index('<li id="paper-TRADES">'))]
    said = " ".join(re.sub(r"<[^>]*>", " ", first).split())
    assert "Published: 0.43 points, tolerance 2." in said and "1 seed, 400 images" in said
    assert "unverified , undecided" in said and 'href="#claim-trades-over-pgd-at"' in first
    row = {
        row["method"]: row
        for row in cells(tree, "unified-leaderboard").to_dict("records")
        if row["column"] == "worst case"
    }
    assert f"TRADES keeps {row['trades']['measured']:.1f} %" in said
    assert f"the best other row, PGD-AT, keeps {row['pgd-at']['measured']:.1f} %" in said
    assert text.index('id="paper-TRADES"') < text.index('id="unified-leaderboard"') < text.index('id="counts"')


def test_a_paper_is_cited_where_it_is_spoken_of(tree, moat):
    reference = {"authors": "Madry & others", "title": "Towards", "where": "ICLR 2018", "url": "https://x.org/1"}
    edit_yaml(
        tree.root.parent / "config/studies/dramoe.yaml", lambda study: study.update(paper="T", reference=reference)
    )
    tree.everything()
    assert moat("report") == 0
    cited = 'Madry &amp; others: <cite>Towards</cite>, <a href="https://x.org/1">ICLR 2018</a>'
    first, study = page(tree).split('<section id="study-dramoe">')
    assert f'<span class="muted reference">{cited}</span>' in first and f"Paper: {cited}." in study


def test_without_published_numbers_none_are_counted(tree, moat):
    tree.everything()
    edit_yaml(tree.root.parent / "config/config.yaml", lambda content: content.update(studies=["unified"]))
    assert moat("report") == 0
    assert "How much was measured" in page(tree) and "tile v-" not in page(tree)


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("One. Two.", ("One. Two.", "")),
        (f"One. {'Two. ' * 200}", ("One.", "Two. " * 200)),
        ("a" * 1000, ("a" * 1000, "")),
    ],
)
def test_only_a_long_caption_is_folded(caption, shown):
    assert _split_caption(caption) == shown


def test_that_all_is_stale_is_not_said_again_below_each_figure(tree, moat):
    tree.everything()
    for record in tree.base.rglob("*.json"):
        make_stale(record)
    assert moat("draw") == moat("report") == 0
    assert "results are stale:" in page(tree) and "Stale: " not in page(tree)


def test_claims_open_the_page_and_agree_with_the_csv(built):
    text = page(built)
    rows = pd.read_csv(built.base / "tables/claims.csv", keep_default_na=False).to_dict("records")
    shown = re.findall(r'<tr id="claim-([\w-]+)"(?: class="idle")? data-verdict="([\w-]+)">', text)
    assert shown == [(row["claim"], row["verdict"]) for row in rows] and len(rows) == 2
    assert text.index('id="claims"') < text.index('id="study-unified"')
    assert "Another metric: 100 % of a_b &amp; &lt;c&gt; | d" in text
    assert 'href="#dramoe-table2-1-1"' in text  # TRADES on ResNet-18, Adv


@pytest.mark.parametrize(
    "needed",
    [
        "snakemake --cores all results/smoke/tables/dramoe-table2.csv --config scale=smoke",
        "Not comparable with published numbers",
        "<code>digits</code> in place of <code>cifar10</code>",
        "results are stale:",
        "all</sup> stale: made by code or a recipe that has changed since",
        "failed: monotone-epsilon",
        "not evaluated yet",
        "the method mart is not part of scale smoke",
        "A &lt;fast&gt; CPU &amp; more, 2 cores",
        "FG_SM &amp; 50 % &lt;b&gt;",
        "1,234",
        "@media print",
        "tabular-nums",
        'name="viewport"',
    ],
)
def test_page_tells(built, needed):
    assert needed in page(built)


def test_page_without_any_result(tree, moat):
    assert moat("report") == 0
    text = page(tree)
    assert "Nothing has been trained at this scale yet" in text
    assert not NUMBER.search(re.sub(r"<details class=\"reading\">.*?</details>", "", text, flags=re.S))
    assert all(cell.strip().startswith("not run") for cell in Reader(text).cells)


def test_stale_is_not_said_of_current_results(tree, moat):
    tree.everything()
    assert moat("report") == 0
    assert "tag stale" not in page(tree)
    assert "results are stale" not in page(tree)


def test_a_stale_run_is_marked_where_its_numbers_stand(tree, moat):
    """In the page's cells and cards, and in the tables' files; the numbers of other runs stay bare."""
    tree.everything()
    make_stale(tree.base / "runs/digits/resnet18/trades/seed0/run.json")
    assert moat("tabulate") == moat("draw") == moat("report") == 0
    note = "stale: made by code or a recipe that has changed since"
    found = cards_of(page(tree))
    name = "unified-leaderboard"
    for number, row in enumerate(cells(tree, name).to_dict("records")):
        card = found[cards.cell_id(name, *divmod(number, 7))]
        is_stale = row["method"] == "trades"
        assert (row["checks_failed"] == "stale") == is_stale
        assert card.get("stale") == (["run: nets changed since"] if is_stale else None)
    for suffix in ("md", "tex"):
        text = (tree.base / f"tables/{name}.{suffix}").read_text()
        mark = re.search(rf"(?:<sup>|superscript{{)(\w)(?:</sup>|}}) {note}", text)[1]
        row = next(line for line in text.splitlines() if "TRADES" in line)
        assert len(re.findall(rf"(?:<sup>|superscript{{)(?:\w,)*{mark}(?:,\w)*(?:</sup>|}})", row)) == 7
    assert re.search(rf"<sup>\w</sup> {note}", page(tree))
    assert "Stale: digits (for CIFAR-10) / ResNet-18 / TRADES." in page(tree)
    assert page(tree).count("stale: nets") == 1


@pytest.mark.brief(keep=lambda case: case["state"] in ("not-enough-queries", "not-applicable"))
@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("not-applicable", "n/a"),
        ("not-enough-examples", "too few"),
        ("not-enough-queries", "too few"),
        ("unknown", "unknown"),
    ],
)
def test_a_check_that_cannot_decide_is_not_shown_as_passed(tree, moat, state, word):
    tree.everything(methods=["standard", "pgd-at"], failed={"pgd-at": ("monotone-epsilon",)})
    path = tree.base / "checks/digits/resnet18/standard/seed0.json"
    content = json.loads(path.read_text())
    content["checks"][1] |= {"state": state, "message": "not applicable: no router"}
    path.write_text(json.dumps(content))
    assert moat("report") == 0
    shown = re.findall(r'<button type="button" class="(\w+)" data-card="(check-\d-\d)"[^>]*>([\w/ ]+)<', page(tree))
    assert shown == [
        ("pass", "check-0-0", "passed"),
        ("skip", "check-0-1", word),
        ("pass", "check-1-0", "passed"),
        ("fail", "check-1-1", "failed"),
    ]
    outcomes = [cards_of(page(tree))[card]["outcome"] for _, card, _ in shown]
    assert outcomes == [["passed"], [state.replace("-", " ")], ["passed"], ["failed"]]


def test_a_card_cannot_end_its_script():
    card = cards.card("</script><b>", [("why", "<!-- & \u2028"), ("nothing", None), ("n", 3)])
    text = cards.embed({"id": card})
    assert "<" not in text
    lines = [["why", "<!-- & \u2028"], ["n", "3"]]
    assert json.loads(text) == {"id": {"title": "</script><b>", "lines": lines}}

"""The files of a configuration as editors, spreadsheets and hostile people leave them."""

import shutil
from pathlib import Path

import pytest
import yaml

from moat.base import plugins
from moat.base.errors import ConfigError
from moat.base.numbers import parse_number
from moat.config import schema
from moat.config.project import Project
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
SCHEMAS = sorted((ROOT / "workflow/schemas").glob("*.yaml"))


@pytest.fixture
def own(tmp_path) -> Project:
    copy_project(tmp_path)
    return Project(tmp_path)


# -- names --------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["methods", "scales", "datasets", "studies"])
def test_what_editors_put_beside_a_file_is_no_name(own, kind):
    """Emacs' link that leads nowhere, macOS' copy of a file's attributes, a backup."""
    before = own.names(kind)
    folder = own.root / "config" / kind
    (folder / ".#trades.yaml").symlink_to("me@host.12:170")
    (folder / "._trades.yaml").write_bytes(b"\x00\x05\x16\x07")
    (folder / "trades (copy).yaml").write_text("[")
    assert own.names(kind) == before


def test_a_file_whose_name_is_not_allowed_is_told_when_it_is_asked_for(own):
    shutil.copy(own.root / "config/scales/mini.yaml", own.root / "config/scales/my scale.yaml")
    with pytest.raises(ConfigError, match=r"config/scales/my scale.yaml: no file may have this name; allowed: letters"):
        own.scale("my scale")


@pytest.mark.parametrize("package", ["methods", "attacks", "models"])
def test_what_editors_put_beside_a_plug_in_is_none(own, package):
    folder = own.root / "plugins" / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".#mine.py").symlink_to("me@host.12:170")
    (folder / "._mine.py").write_bytes(b"\x00\x05\x16\x07")
    plugins.use_project(own.root)
    assert plugins.project_modules(package) == {} and plugins.written() == ()


# -- numbers and lists -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("5e-4", 5e-4), ("1e-1", 0.1), ("1e2", 100.0), ("-2E+3", -2000.0), ("5.0e-4", 5e-4), ("1.e3", 1000.0)),
        *(("12e", "12e"), ("e3", "e3"), ("8/255", "8/255"), ("0x1e2", 482), ("1e5e", "1e5e"), ("100", 100)),
    ],
)
def test_a_number_may_be_written_as_yaml_1_2_writes_it(tmp_path, text, value):
    (tmp_path / "x.yaml").write_text(f"x: {text}")
    found = schema.read_yaml(tmp_path / "x.yaml")["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("optimizer: {lr: .nan}", "optimizer.lr: nan has the wrong type; allowed: number (finite)"),
        ("optimizer: {lr: .inf}", "optimizer.lr: inf has the wrong type"),
        ("optimizer: {weight_decay: -.inf}", "optimizer.weight_decay: -inf has the wrong type"),
        ("epochs: 1e2", "epochs: 100.0 has the wrong type; allowed: integer (a whole number, such as 100)"),
        ("loss: {beta: .nan}", "loss.beta: nan has the wrong type"),
    ],
)
def test_a_number_is_finite_and_a_whole_one_is_whole(own, key, said):
    path = own.root / "config/methods/mine.yaml"
    path.write_text(f"title: Mine\nextends: trades\n{key}\n")
    with pytest.raises(ConfigError) as error:
        own.method("mine")
    assert said in str(error.value)


def test_weight_decay_may_be_written_with_an_exponent(own):
    (own.root / "config/methods/mine.yaml").write_text("title: M\nextends: trades\noptimizer: {weight_decay: 7e-4}\n")
    assert own.method("mine")["optimizer"]["weight_decay"] == 7e-4


def arrays(node, where=""):
    """Every list that a schema describes, by its place."""
    if isinstance(node, dict):
        kind = node.get("type")
        if kind == "array" or (isinstance(kind, list) and "array" in kind):
            yield where, node
        for key, value in node.items():
            yield from arrays(value, f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from arrays(value, f"{where}.{index}")


# One number per channel, or the two ends of an interval.
BY_PLACE = {"mean", "std", "clean", "pgd"}
BENIGN = {"name": "benign", "method": "dwf-expert-benign"}


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_no_list_of_a_schema_takes_a_name_twice(path):
    for where, node in arrays(yaml.safe_load(path.read_text())):
        items = node.get("items", {}).get("type")
        if items != "object" and "$ref" not in node.get("items", {}) and where.rpartition(".")[2] not in BY_PLACE:
            assert node.get("uniqueItems"), where


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("studies/unified.yaml", lambda content: content.update(seeds=[0, 0, 1]), "seeds: [0, 0, 1] has non-unique"),
        (
            "studies/unified.yaml",
            lambda content: next(iter(content["tables"].values()))["columns"][0]["points"].append(
                next(iter(content["tables"].values()))["columns"][0]["points"][0]
            ),
            "stands twice",
        ),
        ("suites.yaml", lambda content: content["quick"]["settings"].append("clean"), "quick.settings"),
        ("scales/smoke.yaml", lambda content: content["include"].update(arch=["resnet18"] * 2), "include.arch"),
        ("datasets/digits.yaml", lambda content: content.update(classes=["0"] * 10), "classes"),
        ("datasets/mnist.yaml", lambda content: content["files"].append({**content["files"][0], "size": 1}), "twice"),
        ("methods/dwf.yaml", lambda content: content["initialize_from"].append({**BENIGN, "method": "fat"}), "twice"),
    ],
)  # fmt: skip
def test_nothing_stands_twice_in_a_list(own, file, change, said):
    path = own.root / "config" / file
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    kind, _, name = file.removesuffix(".yaml").rpartition("/")
    getter = {"studies": "study", "scales": "scale", "datasets": "dataset", "methods": "method", "": "suites"}[kind]
    with pytest.raises(ConfigError) as error:
        getattr(own, getter)(*([name] if kind else []))
    assert said in str(error.value)


# -- hostile YAML ------------------------------------------------------------------------
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join([f'*{chr(97 + k)}'] * 10)}]\n" for k in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 20_000, "more than 50 deep"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "more than 50 deep"),
        ("a: " + "{b: " * 20_000, "more than 50 deep"),
        ("a: &a [*a]", "*a lies inside itself"),
        ("a: &a {b: {c: *a}}", "*a lies inside itself"),
        (LAUGHS, "more than 100000 values"),
        ("? [a, b]\n: 1", "a key is text, and this one a list"),
        ("2020-01-01: 1", "a key is text, and this one a date"),
        ("title: {{ name }}", "a key is text, and this one a dict"),
        ("on: 1", "a key is text, and this one a bool"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: {<<: 3}", "for merging"),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_yaml_is_refused_in_one_line_and_at_once(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        schema.read_yaml(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_merge_keys_are_what_yaml_says(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: [*b, {z: 4}], x: 5}\nd: {<<: *a}\n")
    assert schema.read_yaml(path) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 5, "y": 3, "z": 4},
        "d": {"x": 1, "y": 2},
    }
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 3, y: 4}\n")
    with pytest.raises(ConfigError, match="the key 'y' stands twice"):
        schema.read_yaml(path)


# -- numbers of the command line, and published ones ---------------------------------------
@pytest.mark.parametrize(
    "text", ["1e400", "1e999", "1e99999999", "-1e999", "nan", "inf", "1/0", "9" * 5000 + "/1", "8//255", "", True]
)
def test_what_is_no_finite_number_is_refused_at_once(text):
    with pytest.raises(ConfigError, match="--eps: .* is not a finite number") as error:
        parse_number(text, where="--eps")
    assert len(str(error.value)) < 200


HEADER = "paper,table,dataset,arch,method,metric,setting,value,std\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER.replace(",", ";").encode(), "no column 'table'; needed: table, dataset"),
        (HEADER.encode() + "x,1,é,,,,,1,\n".encode("latin1"), "not a table in UTF-8 with commas"),
        (HEADER.replace(",std", "").encode(), "no column 'std'"),
        (b"", "no column 'table'"),
    ],
)
def test_a_published_table_that_a_spreadsheet_has_spoilt_is_named(own, content, said):
    (own.root / "config/published/dwf.csv").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        own.published("dwf")
    assert f"config/published/dwf.csv: {said}" in str(error.value)


def test_a_byte_order_mark_and_windows_lines_change_nothing(own):
    path = own.root / "config/published/dwf.csv"
    before = own.published("dwf")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert own.published("dwf") == before and len(before) > 10

"""No setting is read by a shell: it reaches the command as one word, as it was written, or is refused in one line."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import small_project
import yaml
from small_project import ROOT
from snakemake.utils import format as snakemake_format

from moat.base.errors import ConfigError
from moat.config import schema
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.config.recipes import resolve_recipe
from moat.pipeline.inputs import Inputs
from project_copy import copy_project

HOSTILE = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "a b",
    "a; touch PWNED; echo x",
    "a\ntouch PWNED",
    """it's "quoted" $HOME \\""",
    "-x > PWNED & #",
    "{x} *",
]


def commands() -> dict[str, str]:
    """Rule -> its shell command, as the rules write it."""
    found = {}
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for name, body in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL):
            if "shell:" in body:
                found[name] = "moat " + "".join(re.findall(r'"(.*)"\)?$', body.split("shell:")[1], re.MULTILINE))
    return found


def test_every_rule_is_looked_at():
    assert set(commands()) >= {"fetch", "prepare", "train", "evaluate", "verify", "probe", "tabulate", "draw", "page"}


@pytest.mark.parametrize("rule", commands())
def test_every_substitution_is_quoted(rule):
    fields = re.findall(r"\{([^}]*)\}", commands()[rule])
    assert fields and all(field.endswith(":q") for field in fields)


class _All:
    """Whatever is asked for is this."""

    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        return self.value


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("rule", commands())
def test_a_value_reaches_the_command_as_one_word(tmp_path, rule, value):
    """By the shell itself, with a `moat` that writes down its arguments."""
    program = tmp_path / "bin/moat"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done > "$ARGUMENTS"\n')
    program.chmod(0o755)
    # An option as the rules get them: a list of words.
    words = _All(["--option", value])
    objects = {"wildcards": _All(value), "input": words, "params": words, "threads": value, "log": "log"}
    command = snakemake_format(commands()[rule], **objects, output=words if "{output." in commands()[rule] else value)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "ARGUMENTS": str(tmp_path / "got")}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    got = (tmp_path / "got").read_bytes().decode().split("\0")[:-1]
    fields = re.findall(r"\{([^}]*):q\}", commands()[rule].split(">")[0])
    assert got.count(value) == len(fields)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.long
def test_a_workflow_runs_with_a_folder_and_a_mirror_of_any_name(tmp_path):
    """The folder of the downloads, and the mirror, which reaches the jobs through their environment."""
    workflow = small_project.make(tmp_path / "project", studies={"first": small_project.study("standard")})
    shutil.copy(ROOT / "config/datasets/cifar10-jpeg.yaml", workflow.root / "config/datasets/own.yaml")
    own = yaml.safe_load((workflow.root / "config/datasets/own.yaml").read_text())
    own |= {"name": "own", "files": [{"name": "x.tar", "sha256": "0" * 64}]}
    (workflow.root / "config/datasets/own.yaml").write_text(yaml.safe_dump(own))
    resources = """down $(touch PWNED) `touch PWNED` it's "$HOME"; touch PWNED; #"""
    mirror = """$(touch PWNED) `touch PWNED` {no} it's "$HOME"; touch PWNED; #"""
    mine = {"data": {"resources": resources, "mirror": str(tmp_path / mirror)}, "warm_start": False}
    (workflow.root / "mine.yaml").write_text(yaml.safe_dump(mine))
    (tmp_path / mirror).mkdir()
    (tmp_path / mirror / "SHA256SUMS").write_text(f"{'0' * 64}  x.tar\n")
    (tmp_path / mirror / "x.tar").write_text("no such checksum")
    wanted = [f"{resources}/digits/manifest.json", f"{resources}/own/manifest.json"]
    done = workflow.snakemake("--retries", "0", "--keep-going", "--configfile", "mine.yaml", "--", *wanted)
    assert (workflow.root / wanted[0]).is_file(), done.stderr
    # The mirror was read, word for word: its file is not what its SHA256SUMS says.
    log = (workflow.root / "logs/fetch/own.log").read_text()
    assert done.returncode != 0 and f"{tmp_path / mirror}/x.tar: sha256 is" in log
    assert not list(tmp_path.rglob("PWNED"))


# -- every name of the configuration that becomes part of a path or a command ---------
@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own")
    copy_project(root)
    return root


def _renamed(kind):
    """A file of this name, and the name asked for."""
    getter = {"datasets": "dataset", "methods": "method", "scales": "scale", "studies": "study"}[kind]
    original = {"datasets": "digits", "methods": "trades", "scales": "smoke", "studies": "unified"}[kind]

    def ask(root: Path, value: str):
        path = root / "config" / kind / f"{value}.yaml"
        try:
            shutil.copy(root / f"config/{kind}/{original}.yaml", path)
            assert value not in Project(root).names(kind)
            getattr(Project(root), getter)(value)
        finally:
            path.unlink(missing_ok=True)

    return ask


def _written(file, change, ask):
    """A file with the value written into it."""

    def with_it(root: Path, value: str):
        path = root / "config" / file
        text = path.read_text()
        content = yaml.safe_load(text)
        change(content, value)
        try:
            path.write_text(yaml.safe_dump(content))
            ask(Project(root))
        finally:
            path.write_text(text)

    return with_it


def _config(key):
    def ask(root: Path, value: str):
        config = yaml.safe_load((root / "config/config.yaml").read_text())
        config[key] = value if key == "scale" else [value]
        schema.validate(config, root / "workflow/schemas/config.schema.yaml", source="config")
        Inputs(Project(root), config)

    return ask


def _rename(items, value):
    items[value] = items.pop(next(iter(items)))


NAMES = {
    "scale": _config("scale"),
    "studies": _config("studies"),
    "a scale's file": _renamed("scales"),
    "a study's file": _renamed("studies"),
    "a method's file": _renamed("methods"),
    "a data set's file": _renamed("datasets"),
    "a data set's name": _written(
        "datasets/digits.yaml", lambda content, value: content.update(name=value), lambda own: own.dataset("digits")
    ),
    "a downloaded file": _written(
        "datasets/mnist.yaml",
        lambda content, value: content["files"][0].update(name=value),
        lambda own: own.dataset("mnist"),
    ),
    "a table": _written(
        "studies/unified.yaml",
        lambda content, value: _rename(content["tables"], value),
        lambda own: own.study("unified"),
    ),
    "a figure": _written(
        "studies/unified.yaml",
        lambda content, value: _rename(content["figures"], value),
        lambda own: own.study("unified"),
    ),
    "a suite": _written("suites.yaml", lambda content, value: _rename(content, value), lambda own: own.suites()),
    "an attack setting": _written(
        "attacks.yaml", lambda content, value: _rename(content, value), lambda own: own.attacks()
    ),
    "a probe": _written("probes.yaml", lambda content, value: _rename(content, value), lambda own: own.probes()),
    "the name of what a recipe starts from": _written(
        "methods/dwf.yaml",
        lambda content, value: content["initialize_from"][0].update(name=value),
        lambda own: resolve_recipe(own, "paper", "dwf"),
    ),
    "the method of what a recipe starts from": _written(
        "methods/dwf.yaml",
        lambda content, value: content["initialize_from"][0].update(method=value),
        lambda own: build_grid(own, "paper", ["dwf"]),
    ),
    "a stand-in": _written(
        "scales/smoke.yaml",
        lambda content, value: content["substitute"]["dataset"].update(cifar10=value),
        lambda own: own.scale("smoke"),
    ),
}


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_refused_in_one_line(own, name, value):
    with pytest.raises(ConfigError) as error:
        NAMES[name](own, value)
    assert str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        *(("resources", value, "\n" not in value and "{" not in value) for value in HOSTILE),
        *(("mirror", value, "\n" not in value) for value in HOSTILE),
    ],
)
def test_a_folder_may_have_any_name_of_one_line(own, key, value, allowed):
    config = yaml.safe_load((own / "config/config.yaml").read_text())
    config["data"][key] = value
    path = own / "workflow/schemas/config.schema.yaml"
    if allowed:
        schema.validate(config, path, source="config")
    else:
        with pytest.raises(ConfigError, match=f"data.{key}: .*allowed: "):
            schema.validate(config, path, source="config")


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ({"warm_start": "false"}, {"warm_start": False}),
        ({"warm_start": "off"}, {"warm_start": False}),
        ({"max_resources": {"runtime": "5", "mem_mb": "null"}}, {"max_resources": {"runtime": 5, "mem_mb": None}}),
        (
            {"threads": {"prepare": 2, "train": "2", "evaluate": "1"}},
            {"threads": {"prepare": 2, "train": 2, "evaluate": 1}},
        ),
        ({"max_resources": "{runtime: 5, mem_mb: null}"}, {"max_resources": {"runtime": 5, "mem_mb": None}}),
        ({"studies": "[unified]"}, {"studies": ["unified"]}),
        ({"scale": "123"}, {"scale": "123"}),
    ],
)
def test_text_of_the_command_line_is_read_where_text_is_not_allowed(own, words, read):
    config = yaml.safe_load((own / "config/config.yaml").read_text()) | words
    path = own / "workflow/schemas/config.schema.yaml"
    schema.read_words(config, path)
    schema.validate(config, path, source="config")
    assert {key: config[key] for key in read} == read

"""What every command owes the shell, and what `moat doctor` prints."""

import argparse
import dataclasses
import errno
import importlib
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

import moat
import moat.commands
from moat import attacks
from moat.base import plugins
from moat.base.errors import unknown_name
from moat.commands import doctor
from moat.commands.cli import SUBCOMMANDS, build_parser, main
from moat.config.grid import build_grid
from moat.config.project import Project
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pandas", "numpy", "matplotlib", "sklearn", "jsonschema")
# Commands without a GPU to lease import what they work with at once.
QUICK = sorted(SUBCOMMANDS.keys() - {"draw", "publish", "report", "tabulate"})

# A figure without results, which says so.
DRAWN = ["--scale", "smoke", "--study", "dwf", "--figure", "figure6"]

HELP = """
import sys
from moat.commands.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    print("loaded:", *sys.modules)
"""


def loaded_by_help(*command) -> tuple[str, set[str]]:
    """What ``moat … --help`` prints, and the modules that it has imported."""
    done = subprocess.run([sys.executable, "-c", HELP, *command, "--help"], capture_output=True, text=True, check=True)
    said, _, loaded = done.stdout.rpartition("loaded:")
    return said, set(loaded.split())


def command_modules(loaded) -> set[str]:
    return {name.split(".")[2] for name in loaded if name.startswith("moat.commands.")} & SUBCOMMANDS.keys()


def test_help_lists_all_commands_and_imports_none():
    said, loaded = loaded_by_help()
    assert all(name in said and line.split()[0] in said for name, line in SUBCOMMANDS.items())
    assert command_modules(loaded) == set() and loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", QUICK)
def test_help_of_a_command_imports_only_that_one(name):
    said, loaded = loaded_by_help(name)
    assert command_modules(loaded) == {name} and loaded.isdisjoint(HEAVY)
    assert said.startswith(f"usage: moat {name} ")


def test_every_command_has_its_line():
    files = Path(moat.commands.__file__).parent.glob("*.py")
    modules = {path.stem: importlib.import_module(f"moat.commands.{path.stem}") for path in files}
    assert {name for name, module in modules.items() if hasattr(module, "add_arguments")} == SUBCOMMANDS.keys()


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_what_a_command_does_it_is_told_by_a_frozen_request(name):
    module = importlib.import_module(f"moat.commands.{name}")
    told = next(iter(module.run.__annotations__.values()))
    kinds = typing.get_args(told) or (told,)
    assert all(dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen for kind in kinds)
    assert module.request.__annotations__["return"] == told
    assert not any("Namespace" in str(field.type) for kind in kinds for field in dataclasses.fields(kind))


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--suit", "quick", "--run", "run", "--out", "x.parquet"],
        ["evaluate", "--dataset-fil", "digits", "--suite", "quick", "--run", "run", "--out", "x.parquet"],
        ["--proj", ".", "doctor"],
        ["doctors"],
        [],
    ],
)
def test_options_are_not_abbreviated_and_commands_not_guessed(command):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_no_command_takes_an_abbreviated_option(name):
    (subparsers,) = [each for each in build_parser()._actions if each.choices]
    parser = argparse.ArgumentParser(allow_abbrev=subparsers.choices[name].allow_abbrev)
    importlib.import_module(f"moat.commands.{name}").add_arguments(parser)
    for action in parser._actions:
        action.required = False
    shorter = [option[:-1] for action in parser._actions for option in action.option_strings if option[:2] == "--"]
    shorter = [each for each in shorter if each not in parser._option_string_actions]
    assert shorter and parser.parse_known_args(shorter)[1] == shorter


NEAREST = {
    "DRAMoE": "dramoe",
    "PGD-AT": "pgd-at",
    "Pgd": "pgd-at",
    "trads": "trades",
    "std": "Std",
    "dramoe-x": "dramoe",
    "": None,
    "nothing like it": None,
}


@pytest.mark.parametrize(("given", "meant"), NEAREST.items(), ids=NEAREST)
def test_the_nearest_name_is_found_whatever_its_case(given, meant):
    said = unknown_name(given, ["dramoe", "pgd-at", "trades", "Std"], what="method")
    guess = f" (did you mean {meant!r}?)" if meant else ""
    assert said == f"unknown method {given!r}{guess}; allowed: Std, dramoe, pgd-at, trades"


@pytest.mark.parametrize("command", ["draw", "report", "tabulate"])
def test_results_that_are_not_there_are_refused(tmp_path, capsys, command):
    where = tmp_path / "nowhere"
    assert main(["--project", str(ROOT), command, "--scale", "quickstart", "--results", str(where)]) == 2
    assert f"--results {where}: no such folder" in capsys.readouterr().err
    assert not where.exists()


def test_an_unknown_option_is_told_with_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit):
        main(["list", "scales", "--jsn"])
    said = capsys.readouterr().err
    assert said.startswith("usage: moat list [-h]") and said.endswith(
        "moat list: error: unrecognized arguments: --jsn\n"
    )


@pytest.mark.parametrize("before", [True, False])
def test_the_project_is_named_before_or_after_the_command(tmp_path, capsys, before):
    where = ["--project", str(ROOT)]
    assert main([*where, "list", "scales"] if before else ["list", "scales", *where]) == 0
    assert "smoke" in capsys.readouterr().out
    where = ["--project", str(tmp_path)]
    assert main([*where, "list", "scales"] if before else ["list", "scales", *where]) == 2
    assert "no folder config/ here" in capsys.readouterr().err


@pytest.mark.parametrize("others", [False, True], ids=["empty", "somebody-elses-config"])
def test_without_a_project_the_installed_configuration_holds(tmp_path, monkeypatch, capsys, others):
    if others:
        (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["list", "scales"]) == 0 and "quickstart" in capsys.readouterr().out
    assert main(["plan"]) == 2
    assert f"{tmp_path}: moat plan needs a checkout of moat, with its config/" in capsys.readouterr().err
    assert main(["report", "--scale", "quickstart"]) == 2
    assert "--results results: no such folder" in capsys.readouterr().err


def test_a_checkouts_own_configuration_goes_first(tmp_path, monkeypatch, capsys):
    copy_project(tmp_path)
    (tmp_path / "config/scales/mine.yaml").write_text((tmp_path / "config/scales/quickstart.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["list", "scales"]) == 0 and "mine " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("evaluate", 75, "moat evaluate: interrupted; the same command continues with the attack setting"),
        ("verify", 75, "moat verify: interrupted; the same command starts the checks again"),
        ("probe", 75, "moat probe: interrupted; the same command starts the probe again"),
        ("train", 75, "moat train: interrupted; what was trained so far is saved"),
        ("tabulate", 130, "moat tabulate: interrupted\n"),
    ],
)
def test_after_ctrl_c_the_shell_is_told_whether_the_command_resumes(monkeypatch, capsys, command, code, said):
    def interrupted(request):
        raise KeyboardInterrupt

    module = importlib.import_module(f"moat.commands.{command}")
    monkeypatch.setattr(module, "add_arguments", lambda parser: None)
    monkeypatch.setattr(module, "request", lambda arguments: None)
    monkeypatch.setattr(module, "run", interrupted)
    assert main([command]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        ("methods", "pgd-at", "PGD adversarial training"),
        ("attacks", "pgd10", "pgd: eps 8/255, step_size 2/255, steps 10"),
        ("datasets", "digits", "Digits (8x8)"),
        ("suites", "quick", "Clean, one step, ten steps"),
        ("scales", "smoke", "Every method and suite"),
        ("checks", "black-box", "Attacks without this model's gradients"),
    ],
)
def test_list_says_what_there_is_in_a_line_each(capsys, kind, name, line):
    assert main(["--project", str(ROOT), "list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["--project", str(ROOT), "list", kind, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in content] == [each.split()[0] for each in lines]
    assert [each["title"] for each in content] == [each.split(maxsplit=1)[1] for each in lines]
    assert {each["name"]: each["title"] for each in content}[name].startswith(line)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("metods", "unknown kind 'metods' (did you mean 'methods'?); allowed: attacks, checks"), ("", "unknown kind ''")],
)
def test_list_of_an_unknown_kind(capsys, kind, said):
    assert main(["--project", str(ROOT), "list", kind]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.long
def test_a_reader_that_goes_away_ends_a_command_quietly():
    """`moat plan --json | head`: there is more to write than a pipe holds."""
    command = [sys.executable, "-m", "moat", "--project", str(ROOT), "plan", "--scale", "paper", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"{"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_broken_pipe_is_no_quiet_end(monkeypatch):
    def fails(arguments):
        raise BrokenPipeError("a pipe of the command's own")

    monkeypatch.setattr("moat.commands.doctor.run", fails)
    with pytest.raises(BrokenPipeError, match="of the command's own"):
        main(["--project", str(ROOT), "doctor"])


@pytest.fixture
def stale(monkeypatch):
    """63 stale results at the scale mini, none elsewhere."""

    def plan(project, grid):
        count = 63 if grid.scale == "mini" else 0
        return [{"status": "stale", "path": f"run{number}", "stale": ["nets", "engine"]} for number in range(count)]

    def grid(project, scale, studies):
        return build_grid(project, scale, studies) if scale == "mini" else SimpleNamespace(scale=scale)

    monkeypatch.setattr(doctor, "plan", plan)
    # Expanding the studies of every scale takes long.
    monkeypatch.setattr(doctor, "build_grid", grid)
    monkeypatch.setattr(doctor, "EXAMINERS", (doctor._results,))


@pytest.mark.parametrize(
    ("options", "listed", "last"),
    [
        ([], 3, "and 60 more; `moat doctor --verbose` lists them"),
        (["--verbose"], 63, "run62: nets, engine changed since"),
    ],
)
def test_doctor_shows_the_first_stale_results_and_counts_the_rest(stale, capsys, options, listed, last):
    assert main(["--project", str(ROOT), "doctor", *options]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index("problem  results mini         0 done, 63 stale, 0 missing")
    end = lines.index("ok       results paper        0 done, 0 stale, 0 missing")
    assert [line for line in lines[start:end] if line.startswith("run")][0] == "run0: nets, engine changed since"
    assert sum(line.startswith("run") for line in lines) == listed
    assert lines[end - 1] == last


def test_doctor_looks_at_the_results_of_the_studies_that_are_configured_as_a_plan_does(tmp_path, monkeypatch):
    copy_project(tmp_path)
    config = tmp_path / "config/config.yaml"
    config.write_text(re.sub(r"studies: \[.*\]", "studies: [dwf]", config.read_text()))
    project, asked = Project(tmp_path), set()
    assert project.config()["studies"] == ["dwf"]
    monkeypatch.setattr(doctor, "build_grid", lambda project, scale, studies: asked.add(tuple(studies)))
    monkeypatch.setattr(doctor, "plan", lambda project, grid: [])
    list(doctor._results(project))
    assert asked == {("dwf",)}


def test_every_attack_family_is_listed_with_what_it_says_of_itself(capsys):
    assert main(["--project", str(ROOT), "list", "families", "--json"]) == 0
    listed = {each["name"]: each["title"] for each in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(plugins.attack_families()) and all(listed.values())
    assert listed["fgsm"] == attacks.fgsm.__doc__.partition("\n")[0]


@pytest.mark.parametrize(
    ("there", "said"),
    [(False, "no such folder; data.mirror or MOAT_MIRROR must name one"), (True, "there is no SHA256SUMS there")],
)
def test_doctor_tells_a_mirror_that_is_not_there(tmp_path, monkeypatch, capsys, there, said):
    monkeypatch.setattr(doctor, "EXAMINERS", (doctor._mirror,))
    monkeypatch.setenv("MOAT_MIRROR", str(mirror := tmp_path / "mirror"))
    if there:
        mirror.mkdir()
    assert main(["--project", str(ROOT), "doctor"]) == 0
    assert f"{mirror}: {said}" in capsys.readouterr().out


# -- variables that other programs set --------------------------------------------------
@pytest.mark.brief(keep=lambda case: case["command"][0] == "fetch")
@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({"PYTHONOPTIMIZE": "2"}, ["--help"]),
        ({"PYTHONOPTIMIZE": "2"}, ["list", "checks"]),
        ({"PYTHONOPTIMIZE": "2"}, ["fetch", "--help"]),
        ({"PYTHONOPTIMIZE": "2"}, ["fetch", "digits", "--into", "{out}"]),
        # What a notebook's `!moat …` inherits, where matplotlib_inline is not installed; and a misspelt one.
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, ["draw", *DRAWN]),
        ({"MPLBACKEND": "TkAggg"}, ["draw", *DRAWN]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_works_whatever_the_environment_says(tmp_path, variables, command):
    if "draw" in command:
        copy_project(tmp_path)
        command = ["--project", str(tmp_path), *command]
    command = [word.format(out=tmp_path / "out") for word in command]
    root = Path(moat.__file__).parents[1]
    environment = {**os.environ, **variables, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "moat", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# -- what moat doctor says about this machine ---------------------------------------------
def findings(examiner, project) -> list[tuple[str, str, str]]:
    return [(each.name, each.state, each.message) for each in examiner(project)]


def test_doctor_tells_a_repository_that_git_does_not_read(tmp_path, monkeypatch):
    copy_project(tmp_path)
    project = Project(tmp_path)
    assert doctor._commit(project).state == "ok"
    for arguments in (
        ["init"],
        ["-c", "user.name=x", "-c", "user.email=x@x.org", "commit", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    assert doctor._commit(project).state == "ok"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found = doctor._commit(project)
    assert found.state == "problem" and "dubious ownership" in found.message


def test_doctor_tells_a_file_system_without_locks(monkeypatch):
    assert {state for _, state, _ in findings(doctor._locks, Project(ROOT))} == {"ok"}
    monkeypatch.setattr("moat.base.locks.missing", lambda folder: "No locks available")
    told = findings(doctor._locks, Project(ROOT))
    assert told and all(state == "problem" and "No locks available" in message for _, state, message in told)


def test_doctor_tells_a_folder_that_it_may_not_open(monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr("moat.base.locks.missing", refuse)
    told = findings(doctor._locks, Project(ROOT))
    assert told and all(state == "problem" and "cannot be opened (Permission denied" in said for _, state, said in told)


def test_doctor_tells_what_a_user_without_a_name_needs(monkeypatch):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("moat.commands.doctor.pwd.getpwuid", unknown)
    for name in ("USER", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert [state for _, state, _ in findings(doctor._user, Project(ROOT))] == ["problem"]
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp")
    assert [state for _, state, _ in findings(doctor._user, Project(ROOT))] == ["ok"]


AVAILABLE = {
    "digits": ("ok", "comes inside a package"),
    "cifar10": ("missing", "`moat fetch cifar10 --into resources/cifar10` gets it from www.cs.toronto.edu, 170 MB"),
    "cifar10-jpeg": ("missing", "no official address: `moat fetch cifar10-jpeg --into resources/cifar10-jpeg` needs a"),
}


@pytest.mark.parametrize("name", AVAILABLE)
def test_doctor_says_where_data_can_be_had(monkeypatch, tmp_path, name):
    monkeypatch.delenv("MOAT_MIRROR", raising=False)
    project = Project(copy_project(tmp_path))
    (found,) = [each for each in doctor._data(project) if each.name == f"data {name}"]
    state, words = AVAILABLE[name]
    assert found.state == state and found.message.startswith(words)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["data/cifar10-jpeg.tar.xz"], "gets it from the mirror"),
        (["other.tar"], "the mirror {mirror} lacks cifar10-jpeg.tar.xz"),
    ],
)
def test_doctor_looks_into_a_mirror(monkeypatch, tmp_path, listed, words):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "SHA256SUMS").write_text("".join(f"{'0' * 64}  {name}\n" for name in listed))
    monkeypatch.setenv("MOAT_MIRROR", str(mirror))
    _, state, message = doctor._availability(Project(copy_project(tmp_path)), "cifar10-jpeg")
    assert state == "missing" and words.format(mirror=mirror) in message


def test_doctor_says_which_scale_can_run(monkeypatch, tmp_path):
    monkeypatch.delenv("MOAT_MIRROR", raising=False)
    project = Project(copy_project(tmp_path))
    monkeypatch.setattr(doctor, "build_grid", lambda project, scale, studies: SimpleNamespace(datasets=["mnist"]))
    found = {name: (state, message) for name, state, message in findings(doctor._scales, project)}
    assert found["scale quickstart"] == ("ok", "all of its data is here")
    assert found["scale small"] == ("missing", "can run once there is cifar10 from www.cs.toronto.edu, 170 MB")
    assert found["scale small-jpeg"] == ("missing", "can run once there is cifar10-jpeg, which needs a mirror")
    assert found["scale paper"][1].startswith("can run once there is mnist from ")

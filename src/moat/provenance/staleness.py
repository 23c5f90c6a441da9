"""Content hashes of the sources that made a result.

Counted are the files that took part: the method's, the net's, the attacks', and what they import. So a new attack
or a new method makes no finished result stale. What counts of a file is its behaviour
(:mod:`moat.provenance.behaviour`), not its comments, its format, its name or its folder. Results whose recorded hashes
differ from today's are *stale*: reported, never thrown away by themselves.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moat.base import plugins
from moat.base.files import visible
from moat.provenance import behaviour

PACKAGE = Path(__file__).parents[1]

# Which part of the package a file that took part belongs to.
PARTS: Mapping[str, tuple[str, ...]] = {
    "nets": ("models/", "kernels/"),
    "method": ("methods/",),
    "attacks": ("attacks/", "data/corruptions/"),
    "engine": ("training/", "data/batches.py", "data/seeding.py", "data/augmentation.py", "data/extra_images.py"),
    "corruptions": ("data/corruptions/", "data/seeding.py"),
    "evaluation": ("evaluation/",),
    "checks": ("evaluation/",),
    "probing": ("evaluation/",),
}
TRAINING_PARTS = ("nets", "method", "attacks", "engine")
EVALUATION_PARTS = ("nets", "attacks", "evaluation")
CHECKS_PARTS = ("nets", "attacks", "checks")
PROBE_PARTS = ("nets", "attacks", "probing")

# Of a part's hash: what its files do, and what they use.
_HALVES = (slice(16), slice(16, None))

# What takes part wherever the part is asked for. (A new check changes no evaluation, the statistics change no row.)
_ROOTS: Mapping[str, tuple[str, ...]] = {
    "engine": ("training/runs.py", "training/engine.py"),
    "corruptions": ("data/corruptions/generate.py",),
    "evaluation": ("evaluation/runner.py",),
    "checks": ("evaluation/checks/*.py",),
}


#: Why a result may be stale beside the parts of the package: of a run the resolved recipe has changed, of an evaluation
#: the suite (its settings, with what the scale changes, or the images), of checks what they may spend, or the probe;
#: the data set is described otherwise today, or was prepared with other content; a model that it was made from was
#: trained again; a run that it starts from, or the run that was measured, is stale or missing.
RECIPE, SUITE, BUDGET, PROBE = "recipe", "suite or its settings", "check budget", "probe"
DATA, MODEL, INITIAL_RUN, RUN, MISSING = "data", "model", "initial run", "its run", "missing"
#: Those that say that a result was told something else, or made of something else: not only the code has changed.
TOLD = frozenset({RECIPE, SUITE, BUDGET, PROBE, DATA, MODEL})
#: Why a table, a figure or the page is stale: its declaration or the code that draws it, the results that it shows, or
#: which of them are marked as stale.
DECLARED, RESULTS, MARKS = "declaration", "results", "stale marks"
_SENTENCES = {
    MISSING: "what it was made from is missing",
    MODEL: "a model that it was made from was trained again",
    INITIAL_RUN: "a run that it starts from is stale",
    RUN: "its run is stale",
}


def describe(reasons: Iterable[str]) -> str:
    """Why a result is stale, for people: ``nets, recipe changed since, its run is stale``."""
    reasons = list(reasons)
    changed = [reason for reason in reasons if reason not in _SENTENCES]
    said = [f"{', '.join(changed)} changed since"] if changed else []
    return ", ".join([*said, *(_SENTENCES[reason] for reason in reasons if reason in _SENTENCES)])


def hash_parts(
    parts: Iterable[str],
    *,
    method: str | None,
    arch: str | None,
    mixture: str | None = None,
    attacks: Iterable[str] = (),
    probe: str | None = None,
    package: Path = PACKAGE,
) -> dict[str, str]:
    """Content hash of each part today: part -> 32 hex digits.

    The first 16 say what the files of the part do, the others what they use of each other and of the other parts'
    files. Both are sums over the files: they know no order, and added up over all parts they stay the same when a
    file moves from one part to another.

    Args:
        parts: keys of :data:`PARTS`.
        method, arch: the names of the class and the net that were trained; None for a model from elsewhere.
        mixture: the name of the mixture that the net is an expert of; None for the net alone.
        attacks: attack families (files of ``attacks/``) that were used by name.
        probe: the kind of probe (file of ``evaluation/probes/``).
    """
    parts = tuple(parts)
    roots = [path for name in attacks for path in _attack_files(name, package)]
    if method is not None:
        roots += _places(f"methods/{method.replace('-', '_')}.py", package)
    if mixture is not None:
        file = f"{mixture.replace('-', '_')}.py"
        roots += [package / "models" / "moe" / file, plugins.project_folder() / "models" / file]
    if probe is not None:
        roots.append(package / "evaluation" / "probes" / f"{probe}.py")
    if arch is not None:
        roots += [path for path in [plugins.net_file(arch, package)] if path is not None]
    roots += [path for part in parts for pattern in _ROOTS.get(part, ()) for path in visible(package, pattern)]
    counted = {path: part for path in _with_imports(roots, package) for part in parts if _is_in(path, part, package)}
    behaviours, uses = dict.fromkeys(parts, 0), dict.fromkeys(parts, 0)
    for path, part in counted.items():
        source = _read(path, package)
        if source.behaviour:
            behaviours[part] += int(source.behaviour, 16)
            uses[part] += sum(_uses(source, counted, package))
    return {part: _digits(behaviours[part]) + _digits(uses[part]) for part in parts}


def corruptions_hash() -> dict[str, str]:
    """Content hash of what corrupts images."""
    return hash_parts(["corruptions"], method=None, arch=None)


def hash_job(parts: Iterable[str], run: Mapping[str, Any], **more) -> dict[str, str]:
    """:func:`hash_parts` for the record of a job, which may then let other jobs know what it has read.

    Args:
        run: the content of a run.json, as for :func:`made_of`. more: ``attacks`` and ``probe``.
    """
    hashes = hash_parts(parts, **made_of(run), **more)
    behaviour.remember()
    return hashes


def made_of(run: Mapping[str, Any]) -> dict[str, str | None]:
    """The keywords of :func:`hash_parts` for the model of a run.json; all None for a model from elsewhere."""
    return {"method": run.get("class"), "arch": run.get("arch"), "mixture": run.get("mixture")}


def _uses(source: behaviour.Source, counted: Mapping[Path, str], package: Path) -> Iterator[int]:
    """A hash of each thing of moat's that a file uses: its name, and what the file that defines it does."""
    for number, full_name in enumerate(source.uses):
        path, name = _definition(full_name, package)
        defined_by = _read(path, package).behaviour if path in counted else ""
        yield int(behaviour.digest(f"{source.behaviour} {number} {name} {defined_by}"), 16)


def _digits(number: int) -> str:
    return f"{number % 2**64:016x}"


@functools.cache
def _hash_parts_once(parts: tuple[str, ...], plugins_written: tuple, **made_of) -> dict[str, str]:
    return hash_parts(parts, **made_of)


def stale(record: Mapping[str, Any], *, package: Path = PACKAGE) -> list[str]:
    """The parts whose sources differ today from those that a record names; empty where it is up to date.

    Args:
        record: the content of a run.json, or of an evaluation's or a check's JSON: ``sources``, and the
            method, arch and attacks that they were hashed for. One without sources is not stale.
    """
    recorded = record.get("sources") or {}
    run = record["run"] if isinstance(record.get("run"), Mapping) else record
    # Thousands of records are of a few hundred kinds; the package that runs does not change while it does.
    hashes = functools.partial(_hash_parts_once, plugins_written=plugins.written())
    today = (hashes if package == PACKAGE else hash_parts)(
        tuple(part for part in recorded if part in PARTS),
        **made_of(run),
        attacks=tuple(attacks_of(record)),
        probe=(record.get("probe") or {}).get("probe"),
        package=package,
    )
    changed = [part for part, value in recorded.items() if today.get(part) != value]
    if recorded.keys() == today.keys() and _total(recorded) == _total(today):
        return []
    # A file that has changed is another one to those that use it, and they are still the same.
    return [part for part in changed if recorded[part][:16] != today.get(part, "")[:16]] or changed


def _total(hashes: Mapping[str, str]) -> list[str]:
    return [_digits(sum(int(value[half] or "0", 16) for value in hashes.values())) for half in _HALVES]


def attacks_of(record: Mapping[str, Any]) -> list[str]:
    """The attack families that a record names: in its settings, as the validation's, or listed."""
    settings = [*record.get("settings", {}).values(), record.get("validation_attack", {})]
    return sorted({setting["attack"] for setting in settings if "attack" in setting} | {*record.get("attacks", ())})


@functools.cache
def reporting_hash(*, package: Path = PACKAGE) -> str:
    """Content hash of what makes tables, figures and the page: code and templates."""
    folder = package / "reporting"
    code = [*visible(folder, "**/*.py"), package / "evaluation" / "statistics.py"]
    templates = [path for path in visible(folder, "**/*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    hashes = [_read(path, package).behaviour for path in code]
    hashes += [hashlib.sha256(path.read_bytes()).hexdigest() for path in templates]
    return behaviour.digest("\n".join(sorted(hashes)))


def read_sources() -> None:
    """Read all of the package's source files, so that processes forked from this one need not."""
    for path in (*visible(PACKAGE, "**/*.py"), *visible(PACKAGE, "**/*.cpp")):
        _read(path, PACKAGE)
    behaviour.remember()


# -- files -----------------------------------------------------------------------
def _attack_files(name: str, package: Path) -> list[Path]:
    """A family is a module or a package."""
    files = (f"{name}.py", f"{name}/__init__.py")
    return [path for file in files for path in _places(f"attacks/{file}", package)]


def _places(file: str, package: Path) -> list[Path]:
    """Where a module may be: in the package, or among the project's plug-ins, which lie as the package does."""
    return [package / file, plugins.project_folder() / file]


def _inside(path: Path, package: Path) -> Path:
    """The path of a module below the package, or below the project's plug-ins."""
    return path.relative_to(package if path.is_relative_to(package) else plugins.project_folder())


def _is_in(path: Path, part: str, package: Path) -> bool:
    return _inside(path, package).as_posix().startswith(PARTS[part])


def _with_imports(roots: Iterable[Path], package: Path) -> set[Path]:
    """The files and all of the package that they import, directly or not."""
    found: set[Path] = set()
    todo = list(roots)
    while todo:
        path = todo.pop()
        if path not in found and path.exists():
            found.add(path)
            # A module may have a part that is compiled.
            todo.append(path.with_suffix(".cpp"))
            for name in _read(path, package).names.values():
                todo += [*_candidates(name, package), *_candidates(name.rpartition(".")[0], package)]
    return found


def _candidates(module: str, package: Path) -> tuple[Path, ...]:
    """Where the module of that full name may be; nowhere if it is not one of moat's."""
    return _module_paths(module, (package, plugins.project_folder()))


# A look at a workflow's results asks for the same few hundred names tens of thousands of times.
@functools.cache
def _module_paths(module: str, folders: tuple[Path, ...]) -> tuple[Path, ...]:
    first, *inside = module.split(".")
    if first != "moat" or not inside:
        return ()
    return tuple(folder / f"{'/'.join(inside)}{end}" for end in (".py", "/__init__.py") for folder in folders)


def _definition(full_name: str, package: Path) -> tuple[Path | None, str]:
    """The file that defines what has this name, and its name there (of a module, none)."""
    module, _, name = full_name.rpartition(".")
    for path in filter(Path.exists, _candidates(full_name, package)):
        return path, ""
    for path in filter(Path.exists, _candidates(module, package)):
        # A package may pass on what a module of it defines.
        passed_on = _read(path, package).names.get(name, full_name)
        return (path, name) if passed_on == full_name else _definition(passed_on, package)
    return None, name


def _read(path: Path, package: Path) -> behaviour.Source:
    inside = _inside(path, package).with_suffix("").parts
    return behaviour.read(path, ".".join(["moat", *(part for part in inside if part != "__init__")]))

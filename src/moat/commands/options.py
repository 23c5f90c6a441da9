"""Options that several commands share, parsed into plain values, without torch."""

import ast
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moat.base.errors import ConfigError, DataError
from moat.config import paths, studies_option
from moat.config.grid import Grid, build_grid
from moat.config.project import Project
from moat.config.recipes import digest
from moat.config.records import Records, evidence_record
from moat.config.shown import select, selection_of
from moat.config.status import Statuses
from moat.machine import devices
from moat.training.run_record import SHA256, WEIGHTS, identity, read_run

DEFAULT_BATCH_SIZE = 250
# What of a scale's `data` is said to `moat prepare`, and its options.
DATA_PARAMETERS = ("image_size", "train_limit", "test_limit", "validation")
# Datasets that are prepared for --dataset.
PREPARED = Path("work") / "data"


# -- the model and examples to evaluate -------------------------------------------
@dataclass(frozen=True)
class FinishedRun:
    """A model trained by ``moat train``.

    Attributes:
        weights: "best" or "last".
        record: its run.json.
    """

    folder: Path
    weights: str
    record: Mapping[str, Any]

    @property
    def option(self) -> str:
        return f"--run {self.folder}"

    @property
    def sha256(self) -> str:
        """The hash of the weights in the record."""
        return self.record[SHA256[self.weights]]

    @property
    def described(self) -> dict[str, Any]:
        """What identifies the model in the record of an evaluation."""
        return {**identity(self.record), "weights": self.weights, "model_sha256": self.sha256}


@dataclass(frozen=True)
class ForeignModel:
    """A model from elsewhere.

    Attributes:
        factory: ``package.module:function``, which builds it; with the arguments, where it needs some.
        weights: the file of its weights; None where the factory loads them.
    """

    factory: str
    weights: Path | None

    @property
    def option(self) -> str:
        return f"--model {self.factory}"


@dataclass(frozen=True)
class Preparation:
    """A dataset to prepare once.

    Attributes:
        spec: its description, from config/datasets/.
        source: the folder of its files; empty where it comes inside a package.
        parameters: those of :data:`DATA_PARAMETERS`; None: as published.
    """

    spec: Mapping[str, Any]
    source: Path
    parameters: Mapping[str, int | None]


@dataclass(frozen=True)
class TargetRequest:
    """A model to evaluate and the test examples to evaluate it on.

    Attributes:
        data: the prepared dataset.
        preparation: how it is prepared where it is missing; None where that is the user's.
        limit: only so many examples, the first ones; None for all.
        batch_size: examples attacked at once.
    """

    model: FinishedRun | ForeignModel
    data: Path
    preparation: Preparation | None
    limit: int | None
    batch_size: int

    @property
    def record(self) -> Mapping[str, Any]:
        """The run.json of a finished run; empty for a model from elsewhere."""
        return self.model.record if isinstance(self.model, FinishedRun) else {}


def add_target_arguments(parser: ArgumentParser) -> None:
    """Add the options for the model to evaluate, the examples and the device."""
    parser.add_argument("--run", dest="run_dir", type=Path, metavar="DIR", help="a run's folder, made by moat train")
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="instead: a function that returns an nn.Module, with arguments in parentheses if it needs some",
    )
    parser.add_argument(
        "--weights",
        metavar="best|last|FILE",
        help="with --run: best (default) or last; with --model: a checkpoint, unless the function loads one",
    )
    parser.add_argument("--dataset", metavar="NAME", help="test images by name (`moat list datasets`), for --model")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="instead: a prepared dataset (default: the run's own)"
    )
    parser.add_argument("--dataset-file", dest="data", type=Path, metavar="FILE", help="the same as --data")
    parser.add_argument("--limit", type=_limit, metavar="N|all", help="only the first N test examples")
    parser.add_argument("--batch-size", type=_count, metavar="N", help="examples attacked at once")
    devices.add_arguments(parser)


def target_request(
    arguments: Namespace, project: Project, *, scale: str | None = None, at_most: int | None = None
) -> TargetRequest:
    """The options of :func:`add_target_arguments`, with the run's own values for those not given.

    Args:
        scale: whose ``data`` holds for ``--dataset``; None: as published.
        at_most: without ``--limit``, the limit is the lower of this and the run's own.

    Raises:
        ConfigError: options that do not go together.
        DataError: no finished run in ``--run``, or a dataset that is not here.
    """
    if (arguments.run_dir is None) == (arguments.model is None):
        raise ConfigError("give either --run DIR or --model MODULE:FACTORY")
    if arguments.dataset is not None and arguments.data is not None:
        raise ConfigError("give either --dataset NAME or --data FILE (also called --dataset-file)")
    model = _foreign_model(arguments) if arguments.run_dir is None else _finished_run(arguments)
    record = model.record if isinstance(model, FinishedRun) else {}
    defaults = record.get("evaluation", {})
    limit = min((each for each in (defaults.get("limit"), at_most) if each is not None), default=None)
    if arguments.limit is not None:
        limit = None if arguments.limit == "all" else arguments.limit
    data, preparation = arguments.data, None
    if arguments.dataset is not None:
        of_run = record.get("scale") if record.get("scale") in project.names("scales") else None
        data, preparation = _named_dataset(project, arguments.dataset, scale or of_run)
    return TargetRequest(
        model=model,
        data=data or Path(record["data"]["path"]),
        preparation=preparation,
        limit=limit,
        batch_size=arguments.batch_size or defaults.get("batch_size") or DEFAULT_BATCH_SIZE,
    )


def _finished_run(arguments: Namespace) -> FinishedRun:
    weights = arguments.weights or "best"
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights {weights}: with --run allowed: {', '.join(WEIGHTS)}")
    return FinishedRun(arguments.run_dir, weights, read_run(arguments.run_dir))


def _foreign_model(arguments: Namespace) -> ForeignModel:
    if arguments.data is None and arguments.dataset is None:
        raise ConfigError("--model needs test images: --dataset NAME (`moat list datasets`), or --dataset-file FILE")
    parse_factory(arguments.model)
    return ForeignModel(arguments.model, None if arguments.weights is None else Path(arguments.weights))


def parse_factory(text: str) -> tuple[str, str, tuple[list[Any], dict[str, Any]] | None]:
    """Module, function and arguments of ``package.module:function("a", b=1)``; None for the last without parentheses.

    Raises:
        ConfigError: it is written otherwise, or an argument is no literal: nothing is evaluated.
    """
    module, _, call = text.partition(":")
    function, parenthesis, _ = call.partition("(")
    if not (module and function.isidentifier()):
        raise ConfigError(f"--model {text}: write MODULE:FACTORY, e.g. mypackage.nets:make")
    if not parenthesis:
        return module, function, None
    try:
        parsed = ast.parse(call, mode="eval").body
        if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name):
            raise ValueError
        arguments = [ast.literal_eval(each) for each in parsed.args]
        keywords = {str(each.arg): ast.literal_eval(each.value) for each in parsed.keywords}
    except (SyntaxError, ValueError) as error:
        allowed = (
            "allowed in the parentheses: numbers, texts in quotes, True, False, None, and lists and the like of them"
        )
        raise ConfigError(
            f"--model {text}: {allowed}, e.g. \"timm:create_model('resnet18', num_classes=10)\""
        ) from error
    return module, function, (arguments, keywords)


def described(project: Project, name: str) -> dict[str, Any]:
    """A dataset's description, with an absolute path where it names a local folder.

    Raises:
        ConfigError: unknown dataset, or a description whose name is not its file's.
    """
    spec = project.dataset(name)
    if spec["name"] != name:
        raise ConfigError(f"config/datasets/{name}.yaml: name: {spec['name']!r}; allowed: the file's name, {name!r}")
    if "folder" in spec:
        return {**spec, "folder": str((project.root / spec["folder"]).resolve())}
    return spec


def data_parameters(project: Project, scale: str | None) -> dict[str, int | None]:
    """What a scale says to ``moat prepare``; all None without one."""
    said = project.scale(scale).get("data") or {} if scale else {}
    return {name: said.get(name) for name in DATA_PARAMETERS}


def _named_dataset(project: Project, name: str, scale: str | None) -> tuple[Path, Preparation]:
    """Where a dataset is prepared, and how.

    Raises:
        ConfigError: an unknown dataset. DataError: it is not fetched; says the command that does it.
    """
    spec, parameters = described(project, name), data_parameters(project, scale)
    # Named by what it is made of, so that it is made anew when that changes.
    out = PREPARED / f"{name}-{digest({'spec': spec, **parameters})[:8]}.safetensors"
    if not spec["files"] and "folder" not in spec:
        return out, Preparation(spec, PREPARED / name, parameters)
    fetched = project.root / paths.manifest(project.config()["data"]["resources"], name)
    if not fetched.exists() and not out.exists():
        mirror = "" if all(file.get("urls") for file in spec["files"]) else " --mirror URL_OR_DIR"
        raise DataError(
            f"--dataset {name}: not here; `moat fetch {name} --into {fetched.parent}{mirror}` gets it, then give this "
            "command again"
        )
    return out, Preparation(spec, fetched.parent, parameters)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError
    return int(text)


def _limit(text: str) -> int | Literal["all"]:
    return text if text == "all" else _count(text)


# argparse puts these names into its message: "invalid whole number from 1 value: '0'".
_count.__name__, _limit.__name__ = "whole number from 1", "whole number from 1, or all"


# -- the tables and figures to show -----------------------------------------------
@dataclass(frozen=True)
class ShownRequest:
    """The tables and figures of some studies at a scale.

    Attributes:
        results: the folder of all scales' results.
        selection: what the names of the files of all studies end in (see :func:`moat.config.shown.selection_of`).
        allow_missing: whether a fuller table, figure or page may be replaced by an emptier one.
    """

    project: Project
    studies: list[str]
    grid: Grid
    results: Path
    selection: str = ""
    allow_missing: bool = False

    def statuses(self, results: Records) -> Statuses:
        """Of the results in ``results``, and of what shows them."""
        return Statuses(results, self.grid, self.studies, self.selection)


def add_shown_arguments(parser: ArgumentParser) -> None:
    """Add the options for the scale, the studies and the folder of results."""
    parser.add_argument("--scale", metavar="X", help="which results; `moat list scales` has the names")
    parser.add_argument("--studies", metavar="A,B", help="these studies (default: those of config/config.yaml)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of all scales' results (default: results/), or of one scale's evidence: results/evidence/X",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="replace what is there even if results that it shows are missing now (otherwise: exit 2)",
    )


def shown_request(arguments: Namespace, study: str | None = None) -> ShownRequest:
    """The options of :func:`add_shown_arguments`, with the grid of their studies.

    Args:
        study: the only study, where a command has such an option.

    Raises:
        ConfigError: an unknown study or scale, or none given.
    """
    project = Project(arguments.project)
    results, scale, listed = arguments.results or project.root / "results", arguments.scale, arguments.studies
    # Without any result, a checkout still has tables, figures and a page to show: of what is not run.
    if not results.is_dir() and (arguments.results or not project.is_checkout):
        raise ConfigError(f"--results {results}: no such folder; it holds a folder for each scale")
    if (record := evidence_record(results)) is not None:
        if scale not in (None, record["scale"]):
            raise ConfigError(f"--scale {scale}: {results} is the evidence of scale {record['scale']}")
        results, scale = results.parent, record["scale"]
        listed = ",".join(record["studies"]) if listed is None and study is None else listed
    if scale is None:
        raise ConfigError("--scale X: which results? (`moat list scales` has the names)")
    studies = studies_option.studies(project, listed, study)
    # Of one study's tables and figures there are no others; evidence is of the studies that its record names.
    selection = "" if study is not None or record is not None else selection_of(project, studies)
    grid = select(build_grid(project, scale, studies), selection)
    return ShownRequest(project, studies, grid, results, selection, arguments.allow_missing)


# -- where unfinished work is kept ------------------------------------------------
def in_work(out: Path) -> Path:
    """``work/`` and the path of ``out`` below the working directory (or its whole path, where it lies elsewhere)."""
    absolute, here = out.resolve(), Path.cwd()
    return Path("work") / (absolute.relative_to(here) if absolute.is_relative_to(here) else absolute.relative_to("/"))

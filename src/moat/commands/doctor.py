"""Report what this machine can do (torch, GPUs, data, workflow tools, disk) and which results are stale."""

import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from moat.base import locks as file_locks
from moat.base.errors import DataError, MoatError
from moat.config import paths
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.data.fetch import read_sums
from moat.machine import gpu_lease, gpus, locks
from moat.planning.status import plan
from moat.provenance import environment
from moat.provenance.staleness import describe

# How many stale results of a scale are shown.
SHOWN = 3


@dataclass(frozen=True)
class Request:
    """Whether to print JSON, and whether to list all of many stale results."""

    project: Project
    json: bool
    verbose: bool


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--verbose", action="store_true", help="list every stale result")


def request(arguments: Namespace) -> Request:
    return Request(Project(arguments.project), arguments.json, arguments.verbose)


def run(request: Request) -> None:
    findings = examine(request.project)
    if request.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
        return
    for finding in findings:
        print(f"{finding.state:8} {finding.name:20} {finding.message}")
        shown = finding.details if request.verbose else finding.details[:SHOWN]
        for detail in shown:
            print(f"{'':29} {detail}")
        if len(shown) < len(finding.details):
            print(f"{'':29} and {len(finding.details) - len(shown)} more; `moat doctor --verbose` lists them")


@dataclass(frozen=True)
class Finding:
    """One finding. ``state``: ``ok``, ``missing`` (not here; the message says what that means) or ``problem``.

    ``details``: what the message counts, one by one.
    """

    name: str
    state: str
    message: str
    details: tuple[str, ...] = ()


def examine(project: Project) -> list[Finding]:
    """All findings, in order. An examination that fails is one, too, and no error."""
    return [finding for examiner in EXAMINERS for finding in _guarded(examiner, project)]


def _guarded(examiner: Callable[[Project], Iterator[Finding]], project: Project) -> list[Finding]:
    try:
        return list(examiner(project))
    except (MoatError, ImportError, OSError, RuntimeError) as error:
        return [Finding(examiner.__name__.strip("_"), "problem", str(error))]


def _torch(project: Project) -> Iterator[Finding]:
    # Here, where a broken installation of torch is a finding.
    import torch

    versions = environment.environment()["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("versions", "ok", listed)
    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, torch would use {torch.get_num_threads()} threads")
    yield _convolutions()
    if not torch.cuda.is_available():
        yield Finding("gpu", "missing", "torch sees no GPU: trainings and attacks run on the CPU, in float32")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        memory = properties.total_memory / 2**30
        yield Finding("gpu", "ok", f"{index}: {properties.name}, {memory:.0f} GB, trains in {precision}")


def _convolutions() -> Finding:
    from moat.kernels import compiled_for  # imports torch

    name, compiled = "cpu convolutions", compiled_for()
    if compiled is not None:
        return Finding(name, "ok", f"compiled for {compiled}")
    why = "there was no C++ compiler when moat was installed, or the processor has neither AVX-512 nor AVX2"
    slow = "convolutions are PyTorch's; on a CPU attacks take twice as long, updates in float32 half as long again"
    return Finding(name, "missing", f"not compiled ({why}): {slow}")


def _gpu_slots(project: Project) -> Iterator[Finding]:
    per_gpu = gpu_lease.configured_slots(default=project.config()["slots_per_gpu"])
    for slot, owner in gpu_lease.holders(gpus.find(), slots_per_gpu=per_gpu).items():
        if owner is None:
            yield Finding("gpu slot", "ok", f"{slot.name}: free")
        else:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.get("since", 0)))
            holder = f"pid {owner.get('pid', '?')} of {owner.get('user', '?')} since {since}"
            yield Finding("gpu slot", "ok", f"{slot.name}: held by {holder}: {owner.get('command', '?')}")


def _project(project: Project) -> Iterator[Finding]:
    if project.is_checkout:
        yield Finding("project", "ok", str(project.root.resolve()))
    else:
        without = "`moat plan` and the workflow need one"
        yield Finding("project", "missing", f"no checkout of moat here, so {project.source} is read; {without}")


def _data(project: Project) -> Iterator[Finding]:
    for name in project.names("datasets"):
        _, state, message = _availability(project, name)
        yield Finding(f"data {name}", state, message)


def _availability(project: Project, name: str) -> tuple[str, str, str]:
    """Where a dataset's files are: what that means for those who need them ("" where they are here), state, message."""
    spec, folder = project.dataset(name), paths.manifest(project.config()["data"]["resources"], name).parent
    if (project.root / paths.manifest(folder.parent, name)).exists():
        return "", "ok", f"fetched and verified, in {folder}"
    if "folder" in spec:
        return "", "ok", f"your folder {spec['folder']}; nothing to download"
    if not spec["files"]:
        return "", "ok", "comes inside a package; nothing to download"
    get = f"`moat fetch {name} --into {folder}`"
    mirror, listed = _chosen_mirror(project), None
    if mirror and "://" not in mirror:
        with contextlib.suppress(DataError):
            listed = {Path(path).name for path in read_sums(mirror)}
    files = [file["name"] for file in spec["files"]]
    if mirror and listed is not None and not listed.issuperset(files):
        return f"{name}, which the mirror lacks", "missing", f"the mirror {mirror} lacks {', '.join(files)}"
    if mirror:
        certain = "gets it" if listed else "may get it"
        return f"{name} from the mirror", "missing", f"{get} {certain} from the mirror {mirror}"
    if not all(file.get("urls") for file in spec["files"]):
        return (
            f"{name}, which needs a mirror",
            "missing",
            f"no official address: {get} needs a mirror (MOAT_MIRROR, or data.mirror) with {', '.join(files)}",
        )
    hosts = ", ".join(dict.fromkeys(urlsplit(file["urls"][0]).netloc for file in spec["files"]))
    sizes = [file.get("size") for file in spec["files"]]
    size = f", {sum(sizes) / 1e6:,.0f} MB" if all(sizes) else ""
    return f"{name} from {hosts}{size}", "missing", f"{get} gets it from {hosts}{size} (not contacted)"


def _scales(project: Project) -> Iterator[Finding]:
    """What has to be downloaded before a scale can run."""
    for scale in project.names("scales"):
        # Expanding all studies takes seconds; most scales name their data.
        datasets = project.scale(scale).get("include", {}).get("dataset")
        datasets = datasets or build_grid(project, scale, project.config()["studies"]).datasets
        needed = [needs for name in datasets if (needs := _availability(project, name)[0])]
        if needed:
            yield Finding(f"scale {scale}", "missing", f"can run once there is {'; '.join(needed)}")
        else:
            yield Finding(f"scale {scale}", "ok", "all of its data is here")


def _chosen_mirror(project: Project) -> str | None:
    return os.environ.get("MOAT_MIRROR") or project.config()["data"]["mirror"]


def _mirror(project: Project) -> Iterator[Finding]:
    mirror = _chosen_mirror(project)
    if not mirror:
        yield Finding("mirror", "ok", "none named: the official addresses are used")
    elif "://" in mirror:
        yield Finding("mirror", "ok", f"{mirror} (not contacted)")
    elif (project.root / mirror / "SHA256SUMS").exists():
        yield Finding("mirror", "ok", mirror)
    elif not (project.root / mirror).is_dir():
        yield Finding("mirror", "problem", f"{mirror}: no such folder; data.mirror or MOAT_MIRROR must name one")
    else:
        yield Finding("mirror", "problem", f"{mirror}: there is no SHA256SUMS there, so its files cannot be verified")


def _tools(project: Project) -> Iterator[Finding]:
    snakemake = importlib.util.find_spec("snakemake") is not None
    install = "in the project: `pip install -c envs/requirements.lock -e '.[workflow]'`"
    yield Finding("snakemake", *(("ok", "installed") if snakemake else ("missing", install)))
    yield _commit(project)
    for name, command, use in (
        ("slurm", "sbatch", "jobs run on this machine only"),
        ("dvc", "dvc", "results are not versioned or shared by DVC"),
    ):
        found = shutil.which(command)
        yield Finding(name, "ok" if found else "missing", found or f"no `{command}` here: {use}")


def _commit(project: Project) -> Finding:
    """Whether run.json will have the commit of this project."""
    found, commit = shutil.which("git"), environment.git_commit(project.root)
    if found is None:
        return Finding("git", "missing", "no `git` here: run.json records no commit")
    if commit is not None or not (project.root / ".git").exists():
        return Finding("git", "ok", found if commit else f"{found}; this is no repository: run.json records no commit")
    done = subprocess.run([found, "-C", str(project.root), "status"], capture_output=True, text=True)
    reason = " ".join(done.stderr.split()) or "it has no commit yet"
    return Finding("git", "problem", f"git does not read this repository, and run.json records no commit: {reason}")


def _user(project: Project) -> Iterator[Finding]:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        lacking = [each for each in ("USER", "XDG_CACHE_HOME") if not os.environ.get(each)]
        what = f"user {os.getuid()} has no name here; Snakemake needs the environment variables USER and XDG_CACHE_HOME"
        yield Finding("user", "problem" if lacking else "ok", what)
    else:
        yield Finding("user", "ok", name)


def _locks(project: Project) -> Iterator[Finding]:
    """Whether the file systems of unfinished work, downloads and GPU locks know locks."""
    config = project.config()
    for folder in dict.fromkeys(
        [project.root, project.root / config["data"]["resources"], locks.shared_folder(make=False)]
    ):
        try:
            reason = file_locks.missing(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Finding("locks", "problem", f"{folder}: cannot be opened ({file_locks.why(error, folder)})")
        else:
            ok = "known to the file system" if reason is None else f"not known to the file system ({reason}): see "
            message = f"{folder}: {ok}" + ("" if reason is None else "docs/cluster.md")
            yield Finding("locks", "ok" if reason is None else "problem", message)


def _disk(project: Project) -> Iterator[Finding]:
    free = shutil.disk_usage(project.root).free / 2**30

    yield Finding("disk", "ok" if free >= 1 else "problem", f"{free:.1f} GB free")


def _results(project: Project) -> Iterator[Finding]:
    if not project.is_checkout:
        return
    for scale in project.names("scales"):
        entries = plan(project, build_grid(project, scale, project.config()["studies"]))
        counts = Counter(entry["status"] for entry in entries)
        listed = ", ".join(f"{counts[status]} {status}" for status in ("done", "stale", "missing"))
        stale = [f"{entry['path']}: {describe(entry['stale'])}" for entry in entries if entry["stale"]]
        yield Finding(f"results {scale}", "ok" if not stale else "problem", listed, tuple(stale))


EXAMINERS = (_project, _torch, _gpu_slots, _data, _scales, _mirror, _tools, _user, _locks, _disk, _results)

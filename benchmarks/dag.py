"""How planning and scheduling grow with the number of jobs.

    python benchmarks/dag.py dry [--jobs 500 2000 8000] [--repeats 3]
    python benchmarks/dag.py schedulers [--jobs 2000] [--repeats 2]

Prints JSON: wall-clock seconds and CPU seconds (of Snakemake and its jobs), medians.

``dry``: `snakemake -n` on this workflow, with as many seeds in its study as give about the requested number of jobs.
``schedulers``: runs a DAG of the same shape (trainings, then two evaluations and the checks of each; the same resources
and priorities) whose jobs only touch their output, with each of Snakemake's schedulers in turn: seconds to the first
job's output, and to the end. A dry run uses no scheduler.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from moat.provenance import environment

ROOT = Path(__file__).parents[1]
STUDY = "unified"
# A training, two evaluations and the checks.
PER_MODEL = 4
SCHEDULERS = {
    "ilp (Snakemake's default)": ["--scheduler", "ilp"],
    "ilp, subsample 100": ["--scheduler", "ilp", "--scheduler-subsample", "100"],
    "ilp, solver HiGHS": ["--scheduler", "ilp", "--scheduler-ilp-solver", "HiGHS"],
    "greedy": ["--scheduler", "greedy"],
    "greedy, subsample 100": ["--scheduler", "greedy", "--scheduler-subsample", "100"],
}
SNAKEFILE = """
N = {models}
rule all:
    input: expand("checks/{{i}}", i=range(N)), expand("evaluations/{{i}}-{{s}}", i=range(N), s=("a", "b"))
rule train:
    output: "runs/{{i}}"
    priority: 5
    threads: 1
    resources: gpu=1, mem_mb=16000, runtime=2880
    shell: ": > {{output}}"
rule evaluate:
    input: "runs/{{i}}"
    output: "evaluations/{{i}}-{{s}}"
    resources: gpu=1, mem_mb=12000, runtime=720
    shell: ": > {{output}}"
rule verify:
    input: "runs/{{i}}"
    output: "checks/{{i}}"
    resources: gpu=1, mem_mb=12000, runtime=720
    shell: ": > {{output}}"
"""


def snakemake(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Run Snakemake; if it fails, the benchmark ends with its output."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(
            f"snakemake {' '.join(options)}: exit code {done.returncode}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        )
    return done


def project_of(folder: Path, jobs: int) -> None:
    """A copy of this project whose study has as many seeds as give about ``jobs`` jobs."""
    for name in ("workflow", "config"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "profiles").symlink_to("workflow/profiles")
    study, scale = folder / f"config/studies/{STUDY}.yaml", folder / "config/scales/paper.yaml"
    content, big = yaml.safe_load(study.read_text()), yaml.safe_load(scale.read_text())
    models = len(dry(folder, f"studies=[{STUDY}]", "train")) // len(content["seeds"])
    big["max_seeds"] = max(1, round(jobs / (PER_MODEL * models)))
    study.write_text(yaml.safe_dump({**content, "seeds": list(range(big["max_seeds"]))}, sort_keys=False))
    scale.write_text(yaml.safe_dump(big, sort_keys=False))


def dry(folder: Path, config: str, rule: str) -> list[str]:
    """The jobs of a rule that a dry run lists."""
    done = snakemake(folder, "-n", "--config", "scale=paper", config)
    return re.findall(rf"^rule {rule}:$", done.stdout + done.stderr, re.MULTILINE)


def measure_dry(sizes: list[int], repeats: int) -> list[dict]:
    rows = []
    for wanted in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            project_of(folder, wanted)
            options = ("-n", "--quiet", "rules", "--config", "scale=paper", f"studies=[{STUDY}]")
            taken, used, said = [], [], ""
            for _ in range(repeats):
                started, before = time.perf_counter(), cpu_seconds()
                done = snakemake(folder, *options)
                taken.append(time.perf_counter() - started)
                used.append(cpu_seconds() - before)
                said = done.stdout + done.stderr
            jobs = int(re.search(r"^total +(\d+)", said, re.MULTILINE)[1])
            row = {"what": "snakemake -n, scale paper", "jobs": jobs, "wall": summary(taken), "cpu": summary(used)}
            rows.append(row)
    return rows


def cpu_seconds() -> float:
    """CPU seconds of all child processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(values: list[float]) -> dict:
    return {
        "n": len(values),
        "seconds": round(statistics.median(values), 2),
        "low": round(min(values), 2),
        "high": round(max(values), 2),
    }


def measure_schedulers(jobs: int, repeats: int) -> list[dict]:
    measured = {name: {"to_first_job": [], "to_the_end": [], "cpu": []} for name in SCHEDULERS}
    for _ in range(repeats):
        for name, options in SCHEDULERS.items():
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "Snakefile").write_text(SNAKEFILE.format(models=jobs // PER_MODEL))
                started, before = time.time(), cpu_seconds()
                snakemake(Path(folder), "--cores", "8", "--resources", "gpu=8", "--quiet", "all", *options)
                measured[name]["to_the_end"].append(time.time() - started)
                measured[name]["cpu"].append(cpu_seconds() - before)
                made = [path.stat().st_mtime for path in (Path(folder) / "runs").iterdir()]
                measured[name]["to_first_job"].append(min(made) - started)
    return [
        {"what": name, "jobs": jobs, **{key: summary(values) for key, values in found.items()}}
        for name, found in measured.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["dry", "schedulers"])
    parser.add_argument("--jobs", type=int, nargs="+", metavar="N", help="default: 500 2000 8000; schedulers: 2000")
    parser.add_argument("--repeats", type=int, metavar="N", help="default: 3; schedulers: 2")
    options = parser.parse_args()
    if options.part == "dry":
        rows = measure_dry(options.jobs or [500, 2000, 8000], options.repeats or 3)
    else:
        rows = [row for jobs in options.jobs or [2000] for row in measure_schedulers(jobs, options.repeats or 2)]
    load = {"load_average_at_the_end": round(os.getloadavg()[0], 1)}
    print(json.dumps({"rows": rows, **load, **environment.environment()}, indent=2))


if __name__ == "__main__":
    main()

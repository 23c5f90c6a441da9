"""The SLURM profile on a real SLURM: what is computed there equals a local run, whatever happens to the jobs."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from slurm_cluster import wait_for

from moat.base.files import hash_file

# Two seconds to the first look at a job instead of forty (every look in vain is followed by one ten seconds later than
# the last); all evaluations in one job.
QUICK = ["--latency-wait", "10", "--group-components", "small=4", "--slurm-init-seconds-before-status-checks"]
PARTITIONS = """
partitions:
  cpu: {max_runtime: 1440, max_mem_mb: 8000, max_threads: 4, max_gpu: 0}
  scavenge: {max_runtime: 1440, max_mem_mb: 8000, max_threads: 4, max_gpu: 2}
"""


@pytest.fixture
def start(request):
    """Snakemake in the background, with the profile unless it is to be local; its output goes to snakemake.log."""
    started = []

    def start(project, *options: str, first_look: int = 2, local: bool = False) -> subprocess.Popen:
        (project.root / "partitions.yaml").write_text(PARTITIONS)
        cluster = ["--profile", "workflow/profiles/slurm", "--slurm-partition-config", "partitions.yaml"]
        how = ["--cores", "1"] if local else [*cluster, *QUICK, str(first_look)]
        command = [sys.executable, "-m", "snakemake", *how, *options]
        with open(project.root / "snakemake.log", "w") as log:
            process = subprocess.Popen(command, cwd=project.root, env=project.environment(), stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def finish(process: subprocess.Popen, project, seconds: float = 600) -> str:
    """Wait for success; what Snakemake said."""
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        code = "none: still running"
    said = (project.root / "snakemake.log").read_text()
    assert code == 0, f"exit code {code}\n{said[-5000:]}"
    return said


def content(root: Path) -> dict[str, str]:
    """What must be equal to the bit: weights, rows, tables, and the history but for its times."""
    results = root / "results/tiny"
    kept = [path for ending in ("safetensors", "parquet", "csv") for path in results.rglob(f"*.{ending}")]
    hashes = {str(path.relative_to(results)): hash_file(path) for path in kept if path.name != "history.csv"}
    for path in results.rglob("history.csv"):
        history = pd.read_csv(path).drop(columns=["train_seconds", "seconds"])
        hashes[str(path.relative_to(results))] = history.to_csv()
    return hashes


def log_of(project, method: str) -> str:
    path = project.root / f"logs/tiny/train/digits/lenet5/{method}/seed0.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.slurm
def test_stopped_and_killed_and_preempted_jobs_end_as_a_local_run_does(cluster, make_project, start):
    project, local = make_project("slurm"), make_project("local")
    process = start(project)

    def training(method):
        return cluster.jobs(f"rule_train_wildcards_tiny_digits_lenet5_{method}")

    def both_train():
        return all("epoch 1:" in log_of(project, method) for method in ("pgd-at", "trades"))

    wait_for(both_train, "two trainings at once")
    # Distinct devices, and the partition that the size of the job asks for.
    given = [re.search(r"GPU assigned by SLURM: (.*)", log_of(project, name))[1] for name in ("pgd-at", "trades")]
    assert sorted(given) == ["0", "1"]
    assert {job["partition"] for job in training("")} == {"scavenge"}
    assert {job["partition"] for job in cluster.jobs("rule_prepare")} == {"cpu"}

    # Somebody with a better claim takes a GPU: SLURM stops one training, and queues it again.
    cluster.query("sbatch", "--partition=gpu", "--gpus=1", "--mem=100", "--output=/dev/null", "--wrap=sleep 2")
    victims = wait_for(lambda: [job for job in training("") if cluster.restarts(job["id"])], "a preemption")
    preempted = victims[0]["comment"].split("_")[-2]
    other = {"pgd-at": "trades", "trades": "pgd-at"}[preempted]
    wait_for(lambda: "stopped at epoch" in log_of(project, preempted), "the preempted training saves itself")
    # SLURM would wait two minutes, and starts nothing before the old processes are gone.
    wait_for(lambda: training(preempted)[0]["state"] == "PENDING", "the preempted job in the queue")
    cluster.query("scontrol", "update", f"JobId={victims[0]['id']}", "StartTime=now")

    # The other one gets the signal that --signal sends ahead of the time limit: to the step, not to the batch shell.
    cluster.query("scancel", "--signal=TERM", training(other)[0]["id"])
    wait_for(lambda: "stopped at epoch" in log_of(project, other), "the other one saves itself")
    again = wait_for(lambda: training(other)[1:], "its retry")[0]
    # It lacked neither time, because it goes on from where it was, nor memory.
    assert (again["limit"], again["memory"]) == ("20:00", "1000M")
    for method in ("pgd-at", "trades"):
        wait_for(lambda method=method: "resumed at epoch" in log_of(project, method), f"{method} resumed")

    undisturbed = start(local, local=True)
    # Evaluations and checks of both runs share one job and its GPU. It is killed without a word.
    group = wait_for(lambda: [job for job in cluster.jobs("small") if job["state"] == "RUNNING"], "the group")[0]
    evaluations = project.root / "logs/tiny/evaluate"
    wait_for(lambda: list(evaluations.rglob("quick.log")), "the first evaluation")
    cluster.query("scancel", "--signal=KILL", "--full", group["id"])

    said = finish(process, project)
    assert len(training(preempted)) == 1 and len(training(other)) == 2 and len(cluster.jobs("small")) == 2
    assert said.count("Trying to restart job") >= 2

    finish(undisturbed, local)
    assert content(project.root) == content(local.root)
    assert len(content(local.root)) >= 10


@pytest.mark.slurm
def test_an_outage_of_the_controller_loses_no_job(cluster, make_project, start):
    """Where accounting is off the plugin then asks sacct until it answers: our stand-in does."""
    # The first look comes after the first epoch and well before the last: the outage is over when the training ends.
    project = make_project("outage", epochs=24)
    run = "results/tiny/runs/digits/lenet5/trades/seed0/run.json"
    process = start(project, "--verbose", run, first_look=12)
    wait_for(lambda: "epoch 1:" in log_of(project, "trades"), "a training")
    cluster.controller(up=False)
    try:
        wait_for(lambda: "could not check status" in (project.root / "snakemake.log").read_text(), "a failed look")
    finally:
        cluster.controller(up=True)
    finish(process, project)
    assert len(cluster.jobs("rule_train_wildcards_tiny_digits_lenet5_trades")) >= 1

"""The line of progress: what it makes of Snakemake's output, and how the command ends."""

import subprocess
import sys

import pytest

from moat.pipeline.progress_line import Progress, clock

BEGUN = """\
Provided cores: 2 (use --cores to define parallelism)
Job stats:
job         count
--------  -------
train           2
verify          1
all             1
total           4

[Mon Nov 30 06:48:43 2026]
rule train:
    output: model
    jobid: 5
[Mon Nov 30 06:48:43 2026]
localrule train:
    output: model
    jobid: 6
""".splitlines()
FINISHED = ["Finished jobid: 5 (Rule: train)", "1 of 4 steps (25%) done"]
FAILED = """\
Error in rule train:
    message: None
    jobid: 6
    output: model
    log: {log} (check log file(s) for error details)
    shell:
        moat train
""".splitlines()


def after(*lines):
    progress = Progress()
    for line in lines:
        progress.read(line)
    return progress


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([], "0:10 looking at what there is to do"),
        (BEGUN, "0:10 0 of 3 jobs, about 0:20 left (train x2)"),
        ([*BEGUN, *FINISHED], "0:10 1 of 3 jobs, about 0:13 left (train)"),
        ([*BEGUN, *FINISHED, *FAILED], "0:10 1 of 3 jobs, about 0:20 left"),
        ([*BEGUN, *FINISHED, "Finished jobid: 6 (Rule: train)"], "0:10 2 of 3 jobs, about 0:09 left"),
    ],
    ids=["before the plan", "two running", "one done", "one failed", "two done"],
)
def test_the_line(lines, shown):
    assert after(*lines).line(10.0) == shown


def test_the_rest_is_estimated_from_what_has_been_seen():
    """A machine of a third of the speed: three times as long."""
    progress = after(*BEGUN, *FINISHED)
    assert progress.seconds_left(40.0) == pytest.approx(3 * progress.seconds_left(10.0))


def test_a_job_that_is_tried_again_and_ends_well_has_not_failed():
    progress = after(*BEGUN, *FAILED)
    assert progress.failed == {"6": ("train", "{log}")}
    progress.read("Finished jobid: 6 (Rule: train)")
    assert progress.failed == {}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (7265, "2:01:05")])
def test_the_clock(seconds, text):
    assert clock(seconds) == text


def call(tmp_path, script):
    options = ["--log", "logs/all.log", "--then", "The page: here"]
    command = [sys.executable, "-m", "moat.pipeline.progress_line", *options, "--", sys.executable, "-c", script]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


def test_what_the_command_says_goes_to_the_log(tmp_path):
    lines = [*BEGUN, "moat: no GPU on this machine", *FINISHED]
    done = call(tmp_path, f"print({chr(10).join(lines)!r})")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "logs/all.log").read_text().splitlines() == lines
    first, *_, last = done.stdout.splitlines()
    assert first == "Snakemake's own output: logs/all.log" and last == "The page: here"
    assert "moat: no GPU on this machine" in done.stdout and "rule train" not in done.stdout


@pytest.mark.parametrize(
    ("log", "shown"),
    [("train.log", "train: train.log\n    moat train: disk full\n"), ("gone.log", "logs/all.log\n")],
    ids=["the job's log", "without one: what was said last"],
)
def test_a_failure_shows_the_end_of_the_failed_jobs_log(tmp_path, log, shown):
    (tmp_path / "train.log").write_text("begun\n" * 100 + "moat train: disk full\n")
    said = "\n".join([*BEGUN, *FAILED]).format(log=log)
    done = call(tmp_path, f"print({said!r}); raise SystemExit(3)")
    assert done.returncode == 3
    assert shown.splitlines()[0] in done.stdout.splitlines() and shown.splitlines()[-1] in done.stdout
    assert done.stdout.count("begun") < 20
    assert "Not finished (exit code 3); the same command goes on from here." in done.stdout
    assert "The page" not in done.stdout

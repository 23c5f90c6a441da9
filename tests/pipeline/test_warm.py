"""Jobs done by forks of a warm process: they end, print and die as commands do that do their work themselves."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import pytest

import moat
from moat.pipeline.warm import VARIABLE
from moat.pipeline.warm import start as warm_start

PYTHON_PATH = Path(moat.__file__).parent.parent

# A server whose jobs are lines of Python instead of moat's commands, and which has nothing to import first.
# Both take signals as from a terminal, also where these tests run in the background, which ignores some.
TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
SERVER = f"""{TERMINAL}
import sys
from moat.pipeline.warm import server
sys.exit(server.main(sys.argv[1], run=lambda argv: exec(argv[-1]) or 0, imported=sys.argv[2:]))
"""
COMMAND = f"""{TERMINAL}
import sys
from moat.pipeline.warm.client import run_warm
code = run_warm(sys.argv[1:])
sys.exit("cold" if code is None else code)
"""
ON = "print('on', flush=True);"
LONG = f"import time; {ON} time.sleep(60)"


@pytest.fixture
def server(tmp_path):
    """A warm process on a socket of its own."""
    path = tmp_path / "warm" / "socket"
    path.parent.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(PYTHON_PATH)}
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdin=subprocess.PIPE, env=environment)
    process.path = path
    wait_for(path.exists)
    yield process
    process.kill()
    process.wait()


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def start(path: Path, job: str, command: str = "train", *, python: str | Path = sys.executable, **options):
    environment = {**os.environ, "PYTHONPATH": str(PYTHON_PATH), VARIABLE: str(path), **options.pop("environment", {})}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    call = [python, "-c", COMMAND, command, job]
    return subprocess.Popen(call, env=environment, text=True, **{**streams, **options})


@pytest.mark.parametrize(
    ("job", "code", "stdout", "stderr"),
    [
        ("print('done')", 0, "done\n", ""),
        ("sys.exit(75)", 75, "", ""),
        ("sys.exit('a sentence')", 1, "", "a sentence\n"),
        ("print(sys.stdin.read())", 0, "typed\n", ""),
        ("import os; print(os.environ['MINE'], os.getcwd(), oct(os.umask(0)))", 0, "yes {folder} 0o27\n", ""),
        ("import os; print('MOAT_WARM' in os.environ)", 0, "False\n", ""),
        ("import signal; print(signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)", 0, "True\n", ""),
        ("import subprocess; print(subprocess.run(['sh', '-c', 'exit 4']).returncode)", 0, "4\n", ""),
        ("import atexit; atexit.register(print, 'the end')", 0, "the end\n", ""),
    ],
)
def test_a_job_is_as_its_command_would_be(server, tmp_path, job, code, stdout, stderr):
    options = {"cwd": tmp_path, "umask": 0o027, "environment": {"MINE": "yes"}}
    done = start(server.path, f"import sys; {job}", **options)
    printed, complained = done.communicate("typed", timeout=60)
    assert (done.returncode, printed, complained) == (code, stdout.format(folder=tmp_path), stderr)


def test_a_job_that_comes_early_waits_for_the_imports(tmp_path):
    """Its own would take as long, on a core that the server needs."""
    path, go = tmp_path / "warm" / "socket", tmp_path / "go"
    path.parent.mkdir()
    (tmp_path / "slow.py").write_text(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PYTHON_PATH), str(tmp_path)])}
    command = [sys.executable, "-c", SERVER, str(path), "slow"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as server:
        wait_for(path.exists)
        early = start(path, "import sys; print('slow' in sys.modules)")
        go.touch()
        printed, complained = early.communicate(timeout=60)
        server.stdin.close()
    assert (early.returncode, printed, complained) == (0, "True\n", "")


def test_a_job_may_name_its_project_first(server, tmp_path):
    job = [COMMAND, "--project", str(tmp_path), "train", "print(argv[:3])"]
    done = subprocess.run(
        [sys.executable, "-c", *job], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(PYTHON_PATH), VARIABLE: str(server.path)},
    )  # fmt: skip
    assert done.stdout == f"{['--project', str(tmp_path), 'train']}\n", done.stderr


def test_an_error_ends_with_its_traceback(server):
    done = start(server.path, "1 / 0")
    _, complained = done.communicate(timeout=60)
    assert done.returncode == 1
    assert "ZeroDivisionError" in complained


def test_jobs_run_beside_each_other(server, tmp_path):
    waiting = f"import os, time\n{ON}\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"
    jobs = [start(server.path, waiting) for _ in range(8)]
    assert [job.stdout.readline() for job in jobs] == ["on\n"] * 8
    (tmp_path / "go").touch()
    assert [job.wait(timeout=60) for job in jobs] == [0] * 8


SAVES = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); {LONG}"


@pytest.mark.parametrize(
    ("job", "sent", "code"),
    [
        (SAVES, signal.SIGTERM, 75),
        (LONG, signal.SIGTERM, -signal.SIGTERM),
        (LONG, signal.SIGINT, -signal.SIGINT),
        (LONG, signal.SIGHUP, -signal.SIGHUP),
        (f"import os; {ON} os.kill(os.getpid(), 9)", None, -signal.SIGKILL),
    ],
    ids=["saves-its-work", "killed", "interrupted", "hung-up", "kills-itself"],
)
def test_signals_reach_the_job_and_its_end_is_the_command_s(server, job, sent, code):
    command = start(server.path, job)
    assert command.stdout.readline() == "on\n"
    if sent is not None:
        command.send_signal(sent)
    assert command.wait(timeout=60) == code


def test_the_job_of_a_killed_command_is_killed(server, tmp_path):
    number = tmp_path / "number"
    command = start(server.path, f"import os; open({str(number)!r}, 'w').write(str(os.getpid())); {LONG}")
    assert command.stdout.readline() == "on\n"
    command.kill()
    wait_for(lambda: not Path("/proc", number.read_text()).exists())


def test_the_jobs_of_a_killed_server_are_killed_and_their_commands_say_so(server, tmp_path):
    number = tmp_path / "number"
    command = start(server.path, f"import os; open({str(number)!r}, 'w').write(str(os.getpid())); {LONG}")
    assert command.stdout.readline() == "on\n"
    server.kill()
    assert command.wait(timeout=60) == 128 + signal.SIGKILL
    wait_for(lambda: not Path("/proc", number.read_text()).exists())


def test_the_end_of_the_workflow_ends_the_server_after_the_last_job(server, tmp_path):
    waiting = f"import os, time\n{ON}\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"
    command = start(server.path, waiting)
    assert command.stdout.readline() == "on\n"
    server.stdin.close()
    (tmp_path / "go").touch()
    assert command.wait(timeout=60) == 0
    assert server.wait(timeout=60) == 0
    assert not server.path.parent.exists()


@pytest.mark.parametrize(
    ("path", "command"),
    [("", "train"), ("/nowhere/socket", "train"), ("its", "fetch"), ("its", "--version")],
    ids=["none", "gone", "a-command-that-starts-at-once", "no-command"],
)
def test_without_a_warm_process_a_command_does_its_work_itself(server, path, command):
    done = start(server.path if path == "its" else Path(path), "print('warm')", command)
    assert done.communicate(timeout=60) == ("", "cold\n")


def test_a_server_of_older_sources_takes_no_jobs(tmp_path):
    """What it has imported is not what the job's results would be said to come from."""
    path = tmp_path / "older" / "socket"
    path.parent.mkdir()
    older = SERVER.replace("sys.exit", "import itertools\nserver.source_times = itertools.count().__next__\nsys.exit")
    process = subprocess.Popen([sys.executable, "-c", older, str(path)], stdin=subprocess.PIPE)
    try:
        wait_for(path.exists)
        assert start(path, "print('warm')").communicate(timeout=60) == ("", "cold\n")
    finally:
        process.kill()
        process.wait()


def of_another_checkout(folder):
    shutil.copytree(PYTHON_PATH / "moat", folder / "moat", ignore=shutil.ignore_patterns("__pycache__"))
    return {"environment": {"PYTHONPATH": str(folder)}}


def of_another_interpreter(folder):
    venv.create(folder, symlinks=True)
    return {"python": folder / "bin/python"}


def with_another_library(folder):
    (folder / "site-packages/torch-0.0.1.dist-info").mkdir(parents=True)
    return {"environment": {"PYTHONPATH": f"{PYTHON_PATH}:{folder / 'site-packages'}"}}


def with_less_memory(folder):
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))}


def of_lower_priority(folder):
    return {"preexec_fn": lambda: os.nice(1)}


@pytest.mark.parametrize(
    "command",
    [of_another_checkout, of_another_interpreter, with_another_library, with_less_memory, of_lower_priority],
)
def test_a_command_that_a_fork_would_not_be_like_does_its_work_itself(server, tmp_path, command):
    done = start(server.path, "print('warm')", **command(tmp_path / "other"))
    assert done.communicate(timeout=60) == ("", "cold\n")
    # The server goes on with those that it is like.
    assert start(server.path, "print('warm')").communicate(timeout=60) == ("warm\n", "")


@pytest.mark.parametrize("length", [60, 120, 250])
def test_a_long_folder_for_temporary_files_does_not_matter(tmp_path, monkeypatch, length):
    folder = tmp_path
    while len(str(folder)) < length:
        folder = folder / ("a" * 40)
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    path = warm_start._socket_path()
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        assert path.parent.stat().st_mode & 0o077 == 0
    finally:
        shutil.rmtree(path.parent)


def test_where_no_folder_is_short_enough_jobs_start_cold_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(warm_start, "_LONGEST", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert warm_start.start() is False
    assert VARIABLE not in os.environ and list(tmp_path.iterdir()) == []

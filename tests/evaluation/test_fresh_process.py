"""The model that ``moat verify`` builds anew in a process of its own: what it knows, and how it may end."""

import contextlib
import copy
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moat.base import plugins
from moat.base.errors import MoatError
from moat.commands import foreign_model, fresh_process, verify
from moat.commands.fresh_process import FreshProcess
from moat.commands.options import FinishedRun, ForeignModel
from moat.evaluation.fresh_judge import fresh_copy
from moat.evaluation.scoring import classify, images
from moat.training.models import load_model
from moat.training.run_record import read_run

MODULE = """
import os, signal, sys, time
import torch
from torch import nn

SEEN = []
# What a model that is loaded leaves in its process.
KNOWN, os.environ["NOTE"] = os.environ.get("NOTE", "nothing"), "left by another"


class Net(nn.Module):
    def __init__(self, forward=None):
        super().__init__()
        self.head, self.calls, self.before = nn.Linear(48, 3), 0, forward

    def forward(self, x):
        if self.before:
            self.before()
        return self.head(x.flatten(1))


class Tells(Net):
    \"\"\"Whether it knows of others, how often its module was asked, and how often this copy.\"\"\"

    def forward(self, x):
        SEEN.append(len(x))
        self.calls += 1
        return torch.tensor([[float(KNOWN != "nothing"), len(SEEN), self.calls]]).expand(len(x), 3)


def silent(): return Net(lambda: time.sleep(1000))
def exits(): return Net(lambda: os._exit(3))
def ends(): return Net(lambda: sys.exit(4))
def killed(): return Net(lambda: os.kill(os.getpid(), signal.SIGKILL))
def fails(): return Net(lambda: {}["key"])
def prints(): return Net(lambda: (print("words"), os.write(1, b"words"), os.write(2, b"words"), sys.stdin.read()))
def unbuilt(): raise ValueError("not twice")
def threads():
    net = Net()
    net.forward = lambda x: torch.full((len(x), 3), float(torch.get_num_threads()))
    return net
"""
CPU = torch.device("cpu")
X = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A process for a factory of the module above, as a context."""
    (tmp_path / "judged_nets.py").write_text(MODULE)
    torch.manual_seed(0)
    save_file(nn.ModuleDict({"head": nn.Linear(48, 3)}).state_dict(), tmp_path / "net.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("NOTE", raising=False)
    monkeypatch.delitem(sys.modules, "judged_nets", raising=False)

    def start(factory, threads=1, **options):
        given = ForeignModel(f"judged_nets:{factory}", tmp_path / "net.safetensors")
        return FreshProcess(given, CPU, threads, tmp_path, **options)

    return start


@pytest.mark.long
def test_it_answers_as_the_model_here(asked):
    with asked("prints") as anew:
        here = foreign_model.build("judged_nets:Net")
        here.head.load_state_dict(_head())
        for x in (X, X[:1].contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(classify(anew, x), classify(here, x), rtol=1e-5, atol=1e-6)


def _head():
    torch.manual_seed(0)
    return nn.Linear(48, 3).state_dict()


@pytest.mark.long
def test_it_knows_nothing_and_every_copy_is_another(asked):
    with asked("Tells") as anew:
        here = foreign_model.build("judged_nets:Tells")
        for _ in range(3):
            here(X)
        assert os.environ["NOTE"] and here(X)[0].tolist() == [0, 4, 4]
        first = fresh_copy(anew)
        assert [first(X)[0].tolist() for _ in range(2)] == [[0, 1, 1], [0, 2, 2]]
        assert copy.deepcopy(anew)(X)[0].tolist() == [0, 3, 1]


@pytest.mark.long
def test_it_computes_with_as_many_threads_as_it_may(asked):
    with asked("threads", threads=2) as anew:
        assert anew(X).unique().tolist() == [2]


WHAT = "the model, built anew in a process of its own, "
ENDS = {
    "exits": f"{WHAT}ended it (exit code 3)",
    "killed": f"{WHAT}ended it (signal SIGKILL)",
    "ends": f"{WHAT}fails: --model judged_nets:ends: given images float32 (5, 3, 4, 4) in [0, 1], the model ends "
    "Python (sys.exit(4))",
    "fails": f"{WHAT}fails: --model judged_nets:fails: given images float32 (5, 3, 4, 4) in [0, 1], the model fails "
    "(KeyError: 'key')",
    "unbuilt": f"{WHAT}fails: --model judged_nets:unbuilt: the factory fails (ValueError: not twice",
    "nobody": f"{WHAT}fails: --model judged_nets:nobody: module 'judged_nets' ",
    "silent": f"{WHAT}gave no answer within 0.5 s",
}


@pytest.mark.long
@pytest.mark.parametrize(("factory", "words"), ENDS.items(), ids=ENDS)
def test_an_end_is_one_line_and_stays_the_answer(asked, factory, words):
    # No process answers within half a second: it has to import torch.
    with asked(factory, **({"seconds": 0.5} if factory == "silent" else {})) as anew:
        for _ in range(2):
            with pytest.raises(MoatError) as raised:
                anew(X)
            assert str(raised.value).startswith(words) and "\n" not in str(raised.value)
            assert raised.value.exit_code == 1  # No DataError: it is a finding about the model.
    assert anew._process.returncode is not None


def test_where_no_process_can_be_started_it_says_so(asked, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with asked("Net") as anew, pytest.raises(MoatError, match="no process can be started.*No such file"):
        anew(X)


@pytest.mark.long
def test_it_ends_with_whoever_started_it(asked, tmp_path):
    """Also where that one is killed."""
    code = (
        "import os, signal, torch; from pathlib import Path\n"
        "from moat.commands.fresh_process import FreshProcess\n"
        "from moat.commands.options import ForeignModel\n"
        "given = ForeignModel('judged_nets:silent', Path('net.safetensors'))\n"
        "anew = FreshProcess(given, torch.device('cpu'), 1, Path())\n"
        "print(anew._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    status = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(1200):
        # A zombie has ended, too.
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.05)
    raise AssertionError(f"{status.parent} is still there")


@pytest.mark.long
def test_a_file_in_the_working_directory_takes_no_modules_place(asked, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('not the json of Python')")
    monkeypatch.chdir(tmp_path)
    sys.path.remove(str(tmp_path))
    with asked("Net") as anew:
        assert anew(X).shape == (5, 3)


@pytest.mark.parametrize("moment", ["build", "classify"])
def test_without_memory_on_its_device_it_answers_on_the_cpu(asked, tmp_path, monkeypatch, moment):
    """The meta device stands for a GPU that another process has filled."""
    home, name = {
        "build": (fresh_process.evaluation_target, "load_model"),
        "classify": (fresh_process, "classify"),
    }[moment]
    original = getattr(home, name)

    def full(model, where):
        if "meta" in (str(where), str(getattr(where, "device", ""))):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, where)

    monkeypatch.setattr(home, name, full)
    given = {"factory": "judged_nets:Net", "weights": str(tmp_path / "net.safetensors")}
    answers = fresh_process.Answers(given, torch.device("meta"))
    assert answers(X, anew=False).shape == (5, 3) and answers.device == CPU


@pytest.mark.long
def test_a_finished_run(project, monkeypatch, digits):
    monkeypatch.chdir(project)
    given = FinishedRun(project / "run", "last", read_run(project / "run"))
    x = images(digits[0][:8], CPU)
    with FreshProcess(given, CPU, 1, project) as anew:
        torch.testing.assert_close(classify(anew, x), classify(load_model("run", "last"), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "started"),
    [({}, 0), ({"class": "own-method"}, 1), ({"arch": "own-net"}, 1), ({"mixture": "own-mixture"}, 1)],
    ids=["moat's own", "a plug-in's method", "a plug-in's net", "a plug-in's mixture"],
)
def test_a_process_is_started_only_for_code_that_is_not_moats(project, monkeypatch, change, started):
    """What a plug-in keeps in its module would be known to a model that is built here."""
    for package, names in {"methods": "METHOD = Own", "models": "NETS = {'own-net': Own}\nMIXTURE = Own"}.items():
        name = {"methods": "own_method", "models": "own_mixture"}[package]
        file = project / "plugins" / package / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"class Own: pass\n{names}\n")
    processes = []

    class Process(contextlib.nullcontext):
        def __init__(self, *_):
            super().__init__(self)
            processes.append(self)

    monkeypatch.setattr(fresh_process, "FreshProcess", Process)
    given = FinishedRun(project / "run", "best", {**read_run(project / "run"), **change})
    plugins.use_project(project)
    try:
        with verify.fresh_model(given, CPU, 1) as fresh:
            first, second = fresh(), fresh()
    finally:
        shutil.rmtree(project / "plugins")
    assert len(processes) == started and (first is second) == bool(started)
    assert started or isinstance(first, nn.Module)

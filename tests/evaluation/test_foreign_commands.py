"""``moat evaluate --model`` and ``moat verify --model``: modules, factories and weights as people really bring them."""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from moat.base.errors import DataError
from moat.commands import evaluate, foreign_model
from moat.commands.cli import main
from moat.config.project import Project
from moat.models import nets
from project_copy import copy_project

NETS = """
import sys
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4 * 8 * 8, classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


class OutOfPlace(Net):
    def forward(self, x):
        return super().forward((x - 0.5) / 0.25)


class View(Net):
    def forward(self, x):
        return self.head(self.conv(x.view(len(x), -1).view(x.shape)).relu().view(len(x), -1))


class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Rounds(Net):
    def forward(self, x):
        return super().forward(x.mul(4).round().div(4))


class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Squeezes(Net):
    def forward(self, x):
        return super().forward(x).squeeze()


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class OneLogit(Net):
    def forward(self, x):
        return super().forward(x)[:, :1]


class Exits(Net):
    def forward(self, x):
        sys.exit()


class FailsLater(Net):
    def forward(self, x):
        if len(x) > 2:
            raise KeyError("batch")
        return super().forward(x)


class SharesItsMemory(Net):
    # Each image has the answer of the first one that lay near it, which all copies of the model know.
    memory = []

    def forward(self, x):
        logits = super().forward(x)
        for row, image in enumerate(x.detach()):
            near = [old for seen, old in self.memory if (seen - image).abs().max() < 0.1]
            if near:
                logits[row] = logits[row] - logits[row].detach() + near[0]
            else:
                self.memory.append((image.clone(), logits[row].detach().clone()))
        return logits


class BuiltOnce(Net):
    def __init__(self):
        super().__init__()
        with open(__file__ + ".built", "a+") as file:
            file.write("again")
            self.first = file.tell() == len("again")

    def forward(self, x):
        if not self.first:
            import os
            os._exit(0)
        return super().forward(x)


def closes():
    sys.stdout.close()
    sys.stderr.close()
    return Net()


def thousand():
    return Net(1000)


def scripted():
    return torch.jit.script(Net())


def needs(argument):
    return Net()


def key_error():
    return {}["net"]


def exits():
    sys.exit("no GPU")


def exits_at_once():
    import os
    os._exit(0)


def signals():
    import os, signal
    os.kill(os.getpid(), signal.SIGUSR1)
    return Net()


def replaces():
    torch.Tensor.argmax = lambda self, *_, **__: torch.zeros(len(self), dtype=torch.int64)
    return Net()


ready, number = Net(), 7
"""
MODULES = {
    "ends": "raise SystemExit(0)",
    "ends_at_once": "import os\nos._exit(0)",
    "parses": "import argparse\np = argparse.ArgumentParser()\np.add_argument('data')\np.parse_args()",
    "looks": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--model')\np.add_argument('--out')\n"
        "assert vars(p.parse_known_args()[0]) == {'model': None, 'out': None}\nfrom elsewhere_nets import Net as make"
    ),
    "syntax": "def make(:\n",
    "divides": "x = 1\ny = x / 0\n",
    "misses": "import a_module_that_nobody_has",
    "moves": (
        "import logging, os, signal, sys, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\ntorch.set_num_threads(2)\nlogging.disable(logging.CRITICAL)\n"
        "torch.set_default_device('meta')\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sys.stdout = sys.stderr = open(os.devnull, 'w')\n"
        "from elsewhere_nets import *\ndef make():\n    return Net().to_empty(device='cpu').float()\n"
    ),
    "strange": "class Strange(BaseException):\n    pass\nraise Strange('not an Exception')\n",
    "vision": "import torch, torchvision\ndef make():\n    return torchvision.models.resnet18(num_classes=10)\n",
}


@pytest.fixture(scope="module")
def place(project, tmp_path_factory):
    """A folder with the modules and weights of nets; the project's data beside."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "elsewhere_nets.py").write_text(NETS)
    for name, text in MODULES.items():
        (folder / f"elsewhere_{name}.py").write_text(text)
    for classes, file in ((10, "net.safetensors"), (1000, "thousand.safetensors")):
        torch.manual_seed(0)
        layers = {"conv": nn.Conv2d(3, 4, 3), "head": nn.Linear(256, classes)}
        save_file(nn.ModuleDict(layers).state_dict(), folder / file)
    return folder


@pytest.fixture
def run(project, place, tmp_path, monkeypatch, capfd):
    """Runs a command on a model: its exit code, the lines of stderr, and the last of them."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(place)

    def call(model, *options, weights=place / "net.safetensors", command="evaluate"):
        for name in [name for name in sys.modules if name.startswith("elsewhere_")]:
            del sys.modules[name]
        arguments = ["--model", model, "--dataset-file", "digits.safetensors"]
        arguments += [] if weights is None else ["--weights", str(weights)]
        if command == "evaluate":
            given = ["--suite", "quick"] if "--suite" not in options else []
            given += ["--out", str(tmp_path / "q.parquet"), "--journal", str(tmp_path / "q.journal")]
        else:
            given = ["--out", str(tmp_path / "q.json")]
        code = main([command, *arguments, *given, *options])
        call.out, err = capfd.readouterr()
        lines = err.strip().splitlines()
        return code, lines, lines[-1] if lines else ""

    return call


IMPORTS = {
    "elsewhere_ends:make": "the module cannot be imported: it ends Python (sys.exit(0), in {}, line 1)",
    "elsewhere_ends_at_once:make": "the module cannot be imported: it ends Python (sys.exit(0), in {}, line 2)",
    "elsewhere_parses:make": "the module cannot be imported: it ends Python (sys.exit(2), in {}, line 4)",
    "elsewhere_syntax:make": "cannot be imported (SyntaxError: invalid syntax (elsewhere_syntax.py, line 1))",
    "elsewhere_divides:make": "the module cannot be imported (ZeroDivisionError: division by zero, in {}, line 2)",
    "elsewhere_misses:make": "(ModuleNotFoundError: No module named 'a_module_that_nobody_has', in {}, line 1)",
    "elsewhere_strange:make": "the module cannot be imported (Strange: not an Exception, in {}, line 3)",
    "elsewhere_nets:mak": "module 'elsewhere_nets' ({}) has no attribute 'mak'",
    "elsewhere_nets:needs": "the factory fails (TypeError: needs() missing 1 required positional argument: 'argument')",
    "elsewhere_nets:key_error": "the factory fails (KeyError: 'net', in {}, line ",
    "elsewhere_nets:exits": "the factory fails: it ends Python (sys.exit('no GPU'), in {}, line ",
    "elsewhere_nets:exits_at_once": "the factory fails: it ends Python (sys.exit(0), in {}, line ",
    "elsewhere_nets:signals": "the factory fails (RuntimeError: the signal SIGUSR1, which ends Python, in {}, line ",
    "elsewhere_nets:replaces": "the factory fails (it replaces torch.Tensor.argmax, by which moat judges its answers)",
    "elsewhere_nets:number": "is an int; a function that returns a torch.nn.Module is needed",
    "elsewhere_nets:sys": "is a module; a function that returns a torch.nn.Module is needed",
    "./elsewhere_nets:Net": "for elsewhere_nets in the working directory write elsewhere_nets:Net",
    "./elsewhere_nets.py:Net": "for elsewhere_nets.py in the working directory write elsewhere_nets:Net",
    "nobody_has_this:make": "the module cannot be imported (ModuleNotFoundError: No module named 'nobody_has_this')",
}


@pytest.mark.parametrize(("model", "words"), IMPORTS.items(), ids=IMPORTS)
@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_a_factory_that_cannot_be_had_is_one_line(run, place, command, model, words):
    code, _, line = run(model, command=command)
    file = os.path.relpath(place / f"{model.partition(':')[0]}.py")
    assert code == 2 and line.startswith(f"moat {command}: --model {model}: "), line
    assert words.format(file if ", in" in words else place / f"{model.partition(':')[0]}.py") in line, line


@pytest.mark.parametrize("eps", ["1e-320", "1e-9", "0", "-8/255", "256/255", "nan", "1e400"])
def test_a_radius_without_other_pixels_in_it_is_one_line(run, eps):
    code, lines, line = run("elsewhere_nets:Net", "--eps=" + eps, command="verify")
    assert (code, len(lines)) == (2, 1) and "--eps" in line, lines


def test_arguments_are_moats_own_and_the_process_stays_as_it_is(run):
    def process():
        of_torch = (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
        )
        handler = signal.getsignal(signal.SIGTERM).__qualname__
        return (
            list(sys.argv),
            Path.cwd(),
            sys.stdout,
            sys.stderr,
            os._exit,
            logging.root.manager.disable,
            handler,
            of_torch,
        )

    assert run("elsewhere_looks:make")[0] == 0
    before = process()
    code, _, line = run("elsewhere_moves:make")
    assert code == 0 and "warning: the clean accuracy" in line and process() == before


@pytest.mark.long
def test_a_module_that_ends_python_leaves_an_exit_code(place, project, tmp_path):
    """In a process of its own: its end, not an exception, is what a shell sees."""
    command = [sys.executable, "-m", "moat", "evaluate", "--model", "elsewhere_ends_at_once:make", "--suite", "quick"]
    command += ["--weights", str(place / "net.safetensors"), "--dataset-file", "digits.safetensors"]
    environment = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "q.parquet")], cwd=project, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and "it ends Python (sys.exit(0)" in done.stderr and "Traceback" not in done.stderr


MISFITS = {
    "Squeezes": (1, "returns (10,); logits (1, classes) are needed"),
    "Pair": (2, "returns a tuple; logits (2, classes) are needed"),
    "OneLogit": (2, "returns (2, 1); at least 2 classes are needed"),
    "Exits": (2, "ends Python (sys.exit(None))"),
    "FailsLater": (16, "fails (KeyError: 'batch')"),
}


@pytest.mark.brief(keep=lambda case: case["command"] == "evaluate" and case["name"] in ("Pair", "FailsLater"))
@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_a_model_that_gives_no_logits_is_one_line(run, command, name):
    given, words = MISFITS[name]
    code, _, line = run(f"elsewhere_nets:{name}", "--batch-size", "16", command=command)
    assert code == 3 and line.startswith(f"moat {command}: --model elsewhere_nets:{name} --data digits.safetensors: ")
    assert line.endswith(f": given images float32 ({given}, 3, 16, 16) in [0, 1], the model {words}"), line


@pytest.mark.long
def test_another_factory_or_other_code_is_measured_again(run, place):
    """Its weights are the same file."""
    (place / "elsewhere_edited.py").write_text("from elsewhere_nets import InPlace, OutOfPlace\n")
    journal = ["--limit", "4", "--batch-size", "4"]

    def measured(model):
        assert run(model, *journal)[0] == 0
        return not run.out.count("measured before")

    assert measured("elsewhere_edited:InPlace") and not measured("elsewhere_edited:InPlace")
    assert measured("elsewhere_edited:OutOfPlace")
    (place / "elsewhere_edited.py").write_text("from elsewhere_nets import InPlace as OutOfPlace\n")
    assert measured("elsewhere_edited:OutOfPlace")


def rows(folder):
    return pd.read_parquet(folder / "q.parquet")


@pytest.mark.long
def test_a_model_that_changes_its_input_has_the_same_rows(run, tmp_path):
    found = []
    for name in ("InPlace", "OutOfPlace"):
        assert run(f"elsewhere_nets:{name}", "--batch-size", "16")[0] == 0
        found.append(rows(tmp_path)[["setting", "index", "predicted", "correct"]])
    assert found[0].equals(found[1])
    assert rows(tmp_path)["linf"].max() <= 8 / 255 + 1e-6
    assert run("elsewhere_nets:InPlace", "--limit", "4", "--steps", "2", "--queries", "2", command="verify")[0] == 0


@pytest.mark.brief(keep=lambda case: (case["command"], case["name"]) == ("evaluate", "scripted"))
@pytest.mark.parametrize("name", ["View", "scripted", "ready"])
@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_honest_models_of_all_kinds_work(run, command, name):
    options = {"evaluate": [], "verify": ["--limit", "4", "--steps", "2", "--queries", "2"]}[command]
    code, _, line = run(f"elsewhere_nets:{name}", *options, command=command)
    assert code == 0, line


@pytest.mark.long
@pytest.mark.parametrize("name", ["NoGrad", "Net"])
def test_strict_makes_a_failed_check_a_failure(run, tmp_path, name):
    """Into a folder that is not there yet."""
    out = tmp_path / "not" / "yet" / "checks.json"
    few = ["--limit", "20", "--steps", "2", "--queries", "50", "--out", str(out)]
    code, lenient = run(f"elsewhere_nets:{name}", *few, "--strict", command="verify")[0], ["--limit", "2"]
    failed = json.loads(out.read_text())["failed"]
    assert code == (1 if failed else 0) and (failed or name == "Net")
    assert run(f"elsewhere_nets:{name}", *few, *lenient, command="verify")[0] == 0


CONCLUSIONS = {
    "a worst case": (
        {"worst": {"of": ["clean", "aa"]}, "aa_worst": {"of": ["aa"]}},
        {"clean": "limit 5", "square": "limit 7"},
        "worst case of 2 attacks: 50.00% [25.00%, 75.00%] of 10 images (weakened by the scale: clean: limit 5)",
    ),
    "no worst case": ({}, {}, "lowest of 4 settings, aa_worst: 40.00% [25.00%, 75.00%] of 10 images"),
    "another name": (
        {"aa_worst": {"of": ["aa"]}},
        {"aa": "n_iter 10"},
        "aa_worst: 40.00% [25.00%, 75.00%] of 10 images (weakened by the scale: aa: n_iter 10)",
    ),
    "many weakened alike": (
        {},
        {"clean": "limit 5", "aa": "n_iter 10", "worst": "limit 5", "aa_worst": "limit 5"},
        "lowest of 4 settings, aa_worst: 40.00% [25.00%, 75.00%] of 10 images"
        " (weakened by the scale: clean, worst, aa_worst: limit 5; aa: n_iter 10)",
    ),
    "all weakened alike": (
        {},
        dict.fromkeys(["clean", "aa", "worst", "aa_worst"], "limit 5"),
        "lowest of 4 settings, aa_worst: 40.00% [25.00%, 75.00%] of 10 images"
        " (weakened by the scale: 4 of them: limit 5)",
    ),
}


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_the_last_line_says_what_to_report(capsys, name):
    groups, weakened, line = CONCLUSIONS[name]
    accuracies = {"clean": 0.9, "aa": 0.5, "worst": 0.5, "aa_worst": 0.4}
    found = {each: {"accuracy": value, "low": 0.25, "high": 0.75, "n": 10} for each, value in accuracies.items()}
    evaluate._conclude({"accuracy": found, "worst_case": groups}, weakened)
    assert capsys.readouterr().out == f"{line}\n"


def test_what_a_scale_weakens_is_known_by_setting(project):
    weakened = evaluate._weakened(Project(project), "small_trust", "tiny")
    assert set(weakened) == {"aa"} and "limit 12" in weakened["aa"] and "n_iter 40" in weakened["aa"]


def test_a_dataset_is_prepared_once_by_name(place, project, tmp_path, monkeypatch, caplog):
    copy_project(tmp_path, of=project)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere_small.py").write_text(
        "from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 10))\n"
    )
    command = ["evaluate", "--model", "elsewhere_small:make()", "--suite", "clean_only", "--out", "q.parquet"]
    command += ["--dataset", "digits", "--scale", "tiny"]
    with caplog.at_level(logging.INFO):
        assert main(command) == 0 and main(command) == 0
    assert [each.message.partition(": ")[2] for each in caplog.records if "prepared" in each.message] == [
        "digits is prepared there once"
    ]
    (prepared,) = Path("work/data").glob("digits-*.safetensors")
    content = json.loads(Path("q.json").read_text())
    assert content["n"] == 40 and content["data"]["path"] == str(prepared)


JUDGED = {
    "Net": ("passed", "of {n} attacked images, 0 get another answer from a copy that has seen nothing"),
    "SharesItsMemory": ("failed", "of {n} attacked images, {n} get another answer from a copy that has seen nothing"),
    "BuiltOnce": (
        "failed",
        "could not be measured: the model, built anew in a process of its own, ended it (exit code 0)",
    ),
}


@pytest.mark.brief(keep=lambda case: case["name"] == "SharesItsMemory")
@pytest.mark.parametrize(("name", "expected"), JUDGED.items(), ids=JUDGED)
def test_attacked_images_are_judged_again_in_another_process(run, tmp_path, name, expected):
    options = ["--limit", "4", "--steps", "2", "--queries", "2", "--eps", "24/255"]
    code, lines, _ = run(f"elsewhere_nets:{name}", *options, command="verify")
    assert code == 0 and not any("Traceback" in line for line in lines)
    checks = json.loads((tmp_path / "q.json").read_text())["checks"]
    (found,) = [each for each in checks if each["check"] == "fresh-judge"]
    assert found["state"] == expected[0]
    if name == "SharesItsMemory":
        assert found["value"]["differing"] > 0
    else:
        assert found["message"] == expected[1].format(n=round(found["value"].get("judged", 0)))


@pytest.mark.long
@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_a_module_that_closes_the_output_does_not_close_moats(place, project, tmp_path, command):
    options = {"evaluate": ["--suite", "quick", "--limit", "4"], "verify": ["--limit", "4", "--steps", "2"]}[command]
    options += ["--out", str(tmp_path / ("q.parquet" if command == "evaluate" else "q.json"))]
    given = ["--model", "elsewhere_nets:closes", "--weights", str(place / "net.safetensors")]
    done = subprocess.run(
        [sys.executable, "-m", "moat", command, *given, "--dataset-file", "digits.safetensors", *options],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert {"evaluate": "clean", "verify": "worst case: "}[command] in done.stdout + done.stderr


@pytest.mark.long
def test_a_module_that_imports_torchvision(place, project, tmp_path):
    """In a process of its own, in which nobody has declared what torchvision's operators need."""
    code = (
        "import torch, sys; sys.path.insert(0, '.')\n"
        "from moat.commands import foreign_model\n"
        "torch.save(foreign_model.build('elsewhere_vision:make').state_dict(), sys.argv[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(place)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "rn.pt")], check=True, env=environment, cwd=place)
    assert (tmp_path / "rn.pt").stat().st_size > 1e6


DOUBTS = {
    "NoGrad": ["the gradient is zero for 40 of 40 images: fgsm, pgd10 cannot attack this model; run moat verify"],
    "Rounds": ["the gradient is zero for 40 of 40 images: fgsm, pgd10 cannot attack this model; run moat verify"],
    "Probabilities": ["the model returns probabilities, not logits: gradients vanish; leave out the softmax"],
    "thousand": ["the model has 1000 outputs, the data 10 classes: are the labels the same?"],
    "Net": [],
}
CHANCE = "is at chance (10.00%): are the normalisation, the range of pixels (here [0, 1])"


@pytest.mark.brief(keep=lambda case: case["name"] in ("NoGrad", "thousand"))
@pytest.mark.parametrize(("name", "words"), DOUBTS.items(), ids=DOUBTS)
def test_what_plainly_did_not_work_is_said_in_a_line(run, place, tmp_path, name, words):
    weights = place / ("thousand.safetensors" if name == "thousand" else "net.safetensors")
    code, lines, _ = run(f"elsewhere_nets:{name}", weights=weights)
    assert code == 0
    said = [line.partition(" warning: ")[2] for line in lines if line.startswith("moat evaluate: warning: ")]
    # The nets are untrained.
    (chance,) = [line for line in said if line.startswith("the clean accuracy")]
    correct = rows(tmp_path).query("setting == 'clean'")["correct"].mean()
    assert chance.startswith(f"the clean accuracy, {correct:.2%}, {CHANCE}")
    assert [line for line in said if line is not chance and "under attack" not in line] == words
    assert list(json.loads((tmp_path / "q.json").read_text())["warnings"].values()) == said


# -- weights -----------------------------------------------------------------------
def state():
    torch.manual_seed(0)
    return nets.build("lenet5", 10, image_size=16).state_dict()


def prefixed(prefix):
    return {prefix + key: value for key, value in state().items()}


def whole(size):
    def write(path):
        torch.save(state(), path)
        path.write_bytes(path.read_bytes()[:size])

    return write


def text(content):
    return lambda path: path.write_bytes(content)


def saved(make):
    return lambda path: torch.save(make(), path)


WEIGHTS = {
    "empty.pt": (text(b""), "the file is empty"),
    "empty.safetensors": (text(b""), "the file is empty"),
    "lfs.pt": (
        text(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        "the file is a Git LFS pointer, not the weights; `git lfs pull` gets them",
    ),
    "lfs.safetensors": (text(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
    "page.pt": (text(b"\n<!DOCTYPE html><html>"), "the file is an HTML or XML page, not weights; the address"),
    "error.pt": (text(b'{"error": "not found"}'), "the file is text in JSON, not weights"),
    "other.pt": (lambda path: save_file(state(), path), "the file is a safetensors file; name it .safetensors"),
    "other.safetensors": (saved(state), "looks like one of torch.save; name it .pt"),
    "cut.pt": (whole(5000), "the file is damaged or cut short (5,000 bytes)"),
    "cut.safetensors": (
        lambda path: (save_file(state(), path), path.write_bytes(path.read_bytes()[:5000])),
        "the file is damaged or cut short (5,000 bytes)",
    ),
    "numbers.pt": (
        text(b"\x00\x01\x02 no weights at all"),
        "neither a safetensors file nor one of torch.save; it begins",
    ),
    "model.pt": (lambda path: torch.save(nn.Linear(2, 2), path), "refused: more than tensors in it; save model.state"),
    "list.pt": (saved(lambda: [1, 2]), "the file holds a list; model.state_dict() is needed"),
    "none.pt": (saved(dict), "the file holds no tensors; save model.state_dict()"),
    "mixed.pt": (saved(lambda: state() | {"epoch": 3}), "not only tensors are in it (epoch); save model.state_dict()"),
    "optimizer.pt": (
        saved(lambda: {"epoch": 3, "lr": 0.1}),
        "the file holds no tensors but epoch, lr; save model.state",
    ),
    "below.pt": (
        saved(lambda: {"epoch": 3, "net": {"a.b": torch.zeros(1)}}),
        "below 'net', of the model's 12 tensors, 12 missing: ",
    ),
    "missing.pt": (
        saved(lambda: {key: value for key, value in state().items() if not key.startswith("head.bias")}),
        "1 missing: head.bias",
    ),
    "extra.pt": (saved(lambda: state() | {"a.b": torch.zeros(1)}), "1 not in the model: a.b"),
    "shape.pt": (
        saved(lambda: state() | {"head.bias": torch.zeros(7)}),
        "1 of another shape: head.bias (7,) for (10,)",
    ),
    "complex.pt": (
        saved(lambda: state() | {"head.bias": torch.zeros(10, dtype=torch.complex64)}),
        "1 of another kind of numbers: head.bias complex64 for float32",
    ),
    "integers.pt": (
        saved(lambda: state() | {"head.bias": torch.zeros(10, dtype=torch.int8)}),
        "1 of another kind of numbers: head.bias int8 for float32",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be_loaded_are_a_reason_in_one_line(run, tmp_path, name):
    write, words = WEIGHTS[name]
    write(tmp_path / name)
    code, _, line = run("elsewhere:make", weights=tmp_path / name)
    assert code == 3 and line.startswith(f"moat evaluate: {tmp_path / name}: ") and words in line, line


NO_FILES = {
    "pipe": (os.mkfifo, "not a file but a pipe, socket or device; copy its content into a file"),
    "folder": (Path.mkdir, "a folder, not a file"),
    "loop": (lambda path: path.symlink_to("loop"), "a symbolic link (to loop) that leads to no file"),
    "broken": (lambda path: path.symlink_to("gone"), "a symbolic link (to gone) that leads to no file"),
    "nothing": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_weights_that_are_no_file(run, tmp_path, name):
    make, words = NO_FILES[name]
    make(tmp_path / name)
    code, _, line = run("elsewhere:make", weights=tmp_path / name)
    assert code == 3 and line == f"moat evaluate: {tmp_path / name}: {words}"


@pytest.mark.long
def test_damaged_held_out_images_are_not_taken_for_none(run, tmp_path):
    """The test images are whole; a prepared file without held-out ones has nothing to say."""
    with safe_open("digits.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = json.loads(metadata["moat"])
    without = {**described, "counts": {name: n for name, n in described["counts"].items() if name != "val"}}
    cases = {
        "damaged": (described, tensors | {"val.labels": tensors["val.labels"][:-1]}),
        "without": (without, {name: each for name, each in tensors.items() if not name.startswith("val.")}),
    }
    few = ["--limit", "4", "--steps", "2", "--queries", "2"]
    for case, (said, held) in cases.items():
        save_file(held, tmp_path / f"{case}.safetensors", metadata={"moat": json.dumps(said)})
        data = ["--dataset-file", str(tmp_path / f"{case}.safetensors")]
        code, _, line = run("elsewhere:make", *data, *few, weights="lenet.safetensors", command="verify")
        if case == "damaged":
            assert code == 3 and "damaged.safetensors: split 'val' has 20 images, 20 index, 19 labels" in line, line
        else:
            assert code == 0, line


class Checkpoint:
    """What trainings leave, around a state dict."""

    average = staticmethod(lambda: {key: value + 1 for key, value in state().items()})
    optimizer = staticmethod(lambda: torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict())

    @staticmethod
    def lightning():
        inside = prefixed("model.") | {"criterion.weight": torch.ones(10)}
        loops = {"fit_loop": {"state_dict": {}}}
        return {"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": inside, "loops": loops}

    @classmethod
    def timm(cls):
        options = argparse.Namespace(model="lenet5", lr=0.1)
        best = np.float64(0.5)
        return {"state_dict": state(), "state_dict_ema": cls.average(), "args": options, "metric": best, "arch": "x"}


# What is saved -> what is said of it. All of it are the same weights.
UNWRAPPED = {
    "state_dict": (lambda: {"epoch": 3, "state_dict": state()}, "taken from 'state_dict'"),
    "model and optimizer": (
        lambda: {"optimizer": Checkpoint.optimizer(), "model": state(), "best": torch.tensor(0.5)},
        "taken from 'model'",
    ),
    "net, as pytorch-cifar": (
        lambda: {"net": prefixed("module."), "acc": 95.2, "epoch": 199},
        "taken from 'net'; their names without 'module.' (of DataParallel)",
    ),
    "ema alone": (lambda: {"ema": state()}, "taken from 'ema'"),
    "ema beside": (lambda: {"ema": Checkpoint.average(), "net": state()}, "taken from 'net'; 'ema' would fit, too"),
    "timm": (Checkpoint.timm, "taken from 'state_dict'; 'state_dict_ema' would fit, too"),
    "lightning": (
        Checkpoint.lightning,
        "taken from 'state_dict'; their names without 'model.'; left out: criterion.weight",
    ),
    "two deep": (lambda: {"checkpoint": {"model": state()}, "epoch": 3}, "taken from 'checkpoint.model'"),
    "parallel": (lambda: prefixed("module."), "their names without 'module.' (of DataParallel)"),
    "compiled": (lambda: prefixed("_orig_mod."), "their names without '_orig_mod.' (of torch.compile)"),
    "both": (
        lambda: prefixed("module._orig_mod."),
        "their names without 'module._orig_mod.' (of DataParallel, torch.compile)",
    ),
    "averaged": (
        lambda: prefixed("module.") | {"n_averaged": torch.tensor(5)},
        "their names without 'module.' (of DataParallel); left out: n_averaged",
    ),
    "backbone": (lambda: prefixed("backbone."), "their names without 'backbone.'"),
    "averages beside": (
        lambda: prefixed("net.") | {"ema." + key: value for key, value in Checkpoint.average().items()},
        "their names without 'net.'; left out: ema.",
    ),
    "plain": (state, ""),
}


@pytest.mark.parametrize("name", UNWRAPPED)
def test_any_usual_checkpoint_is_unwrapped(tmp_path, name):
    make, words = UNWRAPPED[name]
    torch.save(make(), tmp_path / "net.pt")
    torch.manual_seed(1)
    model = nets.build("lenet5", 10, image_size=16)
    said = foreign_model.load_weights(model, tmp_path / "net.pt")
    assert said.startswith(words) and (said == words or "averages" in name)
    assert all(torch.equal(value, state()[key]) for key, value in model.state_dict().items())


def test_the_same_tensors_are_no_second_choice(tmp_path):
    """All names of this model begin with "0.", which may count as the file's prefix or as the model's own."""
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    inside = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": inside}, tmp_path / "net.pt")
    said = foreign_model.load_weights(model, tmp_path / "net.pt")
    assert said == "taken from 'state_dict'; their names without 'module.' (of DataParallel)"


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nets.build("lenet5", 10, image_size=16)
        self.register_buffer("mean", torch.tensor(0.3))


@pytest.mark.parametrize(
    ("wrapper", "prefix", "words"),
    [
        (lambda: nn.DataParallel(nets.build("lenet5", 10, image_size=16)), "", "put into the model's 'module'"),
        (Normalised, "", "put into the model's 'net'; as the factory made them: mean"),
        (
            Normalised,
            "module.",
            "their names without 'module.' (of DataParallel); put into the model's 'net'; as the factory made "
            "them: mean",
        ),
    ],
    ids=["parallel", "normalised", "normalised-parallel"],
)
def test_bare_weights_are_put_into_a_wrapped_model(tmp_path, wrapper, prefix, words):
    save_file(prefixed(prefix), tmp_path / "net.safetensors")
    model = wrapper()
    assert foreign_model.load_weights(model, tmp_path / "net.safetensors") == words
    (inner,) = model.children()
    assert all(torch.equal(value, state()[key]) for key, value in inner.state_dict().items())


def test_what_was_unwrapped_is_said_in_a_line(run, tmp_path, caplog):
    torch.save(UNWRAPPED["lightning"][0](), tmp_path / "last.ckpt")
    with caplog.at_level(logging.INFO):
        assert run("elsewhere:make", "--limit", "4", weights=tmp_path / "last.ckpt")[0] == 0
    (line,) = [each.message for each in caplog.records if "unwrapped" in each.message]
    assert line == f"{tmp_path / 'last.ckpt'}: the weights were unwrapped: {UNWRAPPED['lightning'][1]}"


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": state(), "args": Evil()}, tmp_path / "net.pt")
    with pytest.raises(DataError, match="refused: more than tensors in it"):
        foreign_model.load_weights(nets.build("lenet5", 10, image_size=16), tmp_path / "net.pt")
    assert not (tmp_path / "executed").exists()


# -- factories that bring their weights, and take arguments --------------------------
FACTORIES = {
    "elsewhere_nets:Net": "untrained, the same each time",
    "elsewhere_nets:needs(1)": "an argument",
    "elsewhere_nets:Net(classes=10)": "a keyword",
    "torchvision.models:mobilenet_v2(num_classes=10)": "torchvision",
    "timm:create_model('lcnet_050', num_classes=10)": "timm",
}


@pytest.mark.brief(keep=lambda case: "needs" in case["model"])
@pytest.mark.parametrize("model", FACTORIES, ids=FACTORIES.values())
def test_a_factory_needs_no_file_of_weights(run, tmp_path, model):
    short = ["--limit", "2", "--suite", "clean_only"]
    code, _, line = run(model, *short, weights=None)
    assert code == 0, line
    assert run.out.splitlines()[-1].startswith("lowest of 1 settings, clean: ")
    content = json.loads((tmp_path / "q.json").read_text())["run"]
    assert content["model"] == model and content["weights"] is None and len(content["model_sha256"]) == 64
    assert run(model, *short, weights=None)[0] == 0 and "measured before" in run.out


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("elsewhere_nets:needs(open('x'))", "allowed in the parentheses: numbers, texts in quotes, True"),
        ("elsewhere_nets:needs(1", "allowed in the parentheses"),
        ("elsewhere_nets:needs(1)(2)", "allowed in the parentheses"),
        ("elsewhere_nets:needs(*[1])", "allowed in the parentheses"),
        ("elsewhere_nets:needs(1, 2)", "the factory fails (TypeError: needs() takes 1 positional argument but 2 were"),
        ("elsewhere_nets:number(1)", "is an int; a function that returns"),
        ("elsewhere_nets", "write MODULE:FACTORY"),
        ("elsewhere_nets:a.b", "write MODULE:FACTORY"),
    ],
)
def test_arguments_of_a_factory_are_literals(run, model, words):
    code, _, line = run(model, weights=None)
    assert code == 2 and f"--model {model}: " in line and words in line, line


@pytest.mark.long
def test_another_process_builds_the_same_untrained_net(run, tmp_path):
    few = ["--limit", "4", "--steps", "2", "--queries", "2"]
    assert run("elsewhere_nets:Net", *few, weights=None, command="verify")[0] == 0
    checks = json.loads((tmp_path / "q.json").read_text())["checks"]
    assert [each["state"] for each in checks if each["check"] == "fresh-judge"] == ["passed"]


def test_older_files_without_counters_load(run, tmp_path, monkeypatch):
    """BatchNorm's num_batches_tracked is younger than many checkpoints."""
    (tmp_path / "elsewhere_normed.py").write_text(
        "from moat import models\ndef make():\n    return models.build('resnet18', 10, width=1 / 16, image_size=16)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    normed = nets.build("resnet18", 10, width=1 / 16, image_size=16).state_dict()
    torch.save({k: v for k, v in normed.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pt")
    assert run("elsewhere_normed:make", weights=tmp_path / "old.pt")[0] == 0

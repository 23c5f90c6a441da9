"""Training of mixtures of full networks: examples, losses, what moves and what does not, and resuming."""

import copy
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import moat.methods
from moat.attacks import pgd
from moat.attacks.parts.setting import Attack
from moat.base.errors import ConfigError, Interrupted
from moat.base.files import hash_file
from moat.config.project import Project
from moat.config.recipes import merge, resolve_run
from moat.data.datasets import Dataset, Split
from moat.methods.base import Step
from moat.methods.dwf_expert_fgsm import draw_one
from moat.methods.mocse import binary_losses
from moat.methods.soe import WEIGHTS, confidence_loss, expert_losses, phase_at
from moat.models.moe.soe import confidence
from moat.training import engine, runs
from moat.training.models import load_model

ROOT = Path(__file__).parents[2]
CLASSES = 3
SIZE = 8
SHORT = {"eps": 8 / 255, "step_size": 4 / 255, "steps": 2, "random_start": "uniform"}
DWF = {
    "model": {"experts": 3, "gate_hidden": 64},
    "pgd_attack": {"eps": 8 / 255, "step_size": 4 / 255, "steps": [1, 2]},
    "initialize_from": [
        {"name": "benign", "method": "dwf-expert-benign"},
        {"name": "fgsm0", "method": "dwf-expert-fgsm", "replica": 0, "replicas": 1},
        {"name": "pgd0", "method": "dwf-expert-pgd", "replica": 0, "replicas": 1},
    ],
}
OVERRIDES = {
    "dwf-expert-fgsm": {"watch": {"steps": 2}},
    "dwf-expert-pgd": {"pgd_attack": DWF["pgd_attack"]},
    "dwf": DWF,
    "dwf-frozen": DWF,
    "sramoe": {"attack": SHORT},
    "soe": {"attack": SHORT, "model": {"experts": 2}},
    "mocse-at": {"attack": SHORT},
    "mocse-at-iso": {"attack": SHORT},
}
METHODS = [
    "dwf-expert-benign", "dwf-expert-fgsm", "dwf-expert-pgd", "dwf", "dwf-frozen", "sramoe", "soe",
    "mocse", "mocse-at", "mocse-iso", "mocse-at-iso",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def resolved(name, **recipe):
    """The method's own recipe, shorter and with fewer experts."""
    run = resolve_run(Project(ROOT), "paper", dataset="digits", arch="resnet18", method=name, seed=0)
    overrides = copy.deepcopy(OVERRIDES.get(name, {}))
    model = overrides.pop("model", {})
    run["recipe"] = merge(merge(run["recipe"], {"epochs": 2, "batch_size": 8, **overrides}), recipe)
    run["model"] = {**run["model"], **model, "width": 1 / 16}
    run["validation_attack"] = {"attack": "none"}
    return run


def made(name, **recipe):
    run = resolved(name, **recipe)
    cls = moat.methods.get(run["class"])
    torch.manual_seed(0)
    options = {**run["model"], "image_size": SIZE, "in_channels": 3, "normalize": "cifar10"}
    model = cls.build(arch="resnet18", num_classes=CLASSES, options=options)
    method = cls(model.to(memory_format=torch.channels_last), run["recipe"])
    method.train_mode()
    return method


def step_of(batch=0, epoch=0):
    return Step(0, epoch, 2, batch, 30, torch.device("cpu"))


def batch(count=8, low=0.2, high=0.8):
    """Images that no attack of these budgets clamps, and labels."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(count, 3, SIZE, SIZE, generator=g) * (high - low) + low
    return x.contiguous(memory_format=torch.channels_last), torch.arange(count) % CLASSES


def double(model):
    return copy.deepcopy(model).double()


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def moved(before, module):
    return {key for key, value in module.state_dict().items() if not torch.equal(before[key], value)}


# -- draws -------------------------------------------------------------------
def test_a_draw_is_one_value_per_batch_and_the_same_when_repeated():
    values = list(range(9))
    drawn = [draw_one(values, step_of(number), "fgsm epsilon") for number in range(300)]
    assert drawn == [draw_one(values, step_of(number), "fgsm epsilon") for number in range(300)]
    # Each is expected 33 times, with a standard deviation of 5.4.
    assert all(12 <= drawn.count(value) <= 55 for value in values)
    assert drawn != [draw_one(values, step_of(number), "pgd steps") for number in range(300)]
    assert drawn != [draw_one(values, step_of(number, epoch=1), "fgsm epsilon") for number in range(300)]


def test_dwf_shows_clean_fgsm_and_pgd_examples_of_one_batch():
    method, (x, y) = made("dwf"), batch()
    choices = [0.01 * k for k in range(1, 10)]
    seen = set()
    for number in range(5):
        step = step_of(number)
        before = state(method.model)
        images = method.expand(x, y, step)
        assert images.shape == (24, 3, SIZE, SIZE) and torch.equal(images[:8], x)
        assert not moved(before, method.model)
        radius = (images[8:16] - x).abs().flatten(1).amax(1)
        # One epsilon for all images of the batch.
        torch.testing.assert_close(radius, radius[:1].expand(8), rtol=0, atol=1e-6)
        (eps,) = [choice for choice in choices if math.isclose(choice, float(radius[0]), abs_tol=1e-5)]
        assert eps == pytest.approx(draw_one(choices, step, "fgsm epsilon"))
        assert (images[16:] - x).abs().max() <= 8 / 255 + 1e-6
        seen.add(round(eps, 2))
    assert len(seen) > 2


def test_dwf_draws_the_number_of_pgd_steps_once_per_batch():
    method, (x, y) = made("dwf-expert-pgd"), batch()
    calls = []
    method.model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    counts = []
    for number in range(8):
        calls.clear()
        method.update(x, y, step_of(number))
        # One forward pass more for the loss.
        counts.append(len(calls) - 1)
        assert counts[-1] == draw_one([1, 2], step_of(number), "pgd steps") and set(calls) == {8}
    assert set(counts) == {1, 2}


def test_an_fgsm_expert_trains_on_fgsm_examples_of_the_drawn_epsilon_only():
    method, (x, y) = made("dwf-expert-fgsm"), batch()
    reference = double(method.model).eval()
    eps = float(draw_one(method.recipe["fgsm_attack"]["eps"], step_of(), "fgsm epsilon"))
    wide = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(reference(wide), y), wide)
    x_adv = (x.double() + eps * gradient.sign()).clamp(0, 1)
    expected = F.cross_entropy(reference.train()(x_adv), y).detach()
    assert float(method.update(x, y, step_of())["loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_an_fgsm_expert_reports_its_accuracy_under_pgd():
    method, asked = made("dwf-expert-fgsm"), []
    assert method.end_epoch(0, lambda attack: asked.append(attack) or 0.25) == {"watched_accuracy": 0.25}
    assert isinstance(asked[0], Attack) and (asked[0].steps, asked[0].eps) == (2, 8 / 255)


# -- losses, recomputed in float64 -------------------------------------------
def test_dwf_loss():
    method, (x, y) = made("dwf"), batch()
    images = method.expand(x, y, step_of()).double()
    model = double(method.model).train()
    scores = torch.stack([expert(images) for expert in model.experts], 1)
    w = model.router(images).exp() / model.router(images).exp().sum(1, keepdim=True)
    logits = (w[:, :, None] * scores).sum(1)
    expected = -sum(logits[b].log_softmax(0)[int(y[b % 8])] for b in range(24)) / 24
    metrics = method.update(x, y, step_of())
    assert float(metrics["loss"]) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert sum(float(metrics[f"expert{i}_weight_adversarial"]) for i in range(3)) == pytest.approx(1, abs=1e-5)
    entropy = -(w[:8] * w[:8].log()).sum(1).mean()
    assert float(metrics["router_entropy_clean"]) == pytest.approx(float(entropy.detach()), rel=1e-4)


def test_sramoe_loss():
    method, (x, y) = made("sramoe"), batch()
    x_adv = pgd(method.model, x, y, loss="ce", generator=step_of().generator("attack"), **method.attack)
    model, expected = double(method.model), 0.0
    model.train()
    model.experts.eval()
    for images in (x, x_adv):
        images = images.double()
        w = model.router(images).softmax(1)
        clean, adversarial = (expert(images) for expert in model.experts)
        expected += F.cross_entropy(w[:, :1] * clean + w[:, 1:] * adversarial, y)
    assert float(method.update(x, y, step_of())["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("epoch", [0, 1])
def test_soe_loss_in_both_phases(epoch):
    method, (x, y) = made("soe"), batch()
    step = step_of(epoch=epoch)
    if epoch == 0:
        parts = [
            pgd(expert, x, y, loss="ce", generator=step.generator(f"attack on expert {i}"), **method.attack)
            for i, expert in enumerate(method.model.experts)
        ]
    else:
        parts = [pgd(method.model, x, y, loss="ce", generator=step.generator("attack"), **method.attack)]
    model = double(method.model).train()
    expected = 0.0
    for images, labels in ((x, y), (torch.cat(parts), torch.cat([y] * len(parts)))):
        answers = [expert.answer(images.double()) for expert in model.experts]
        total = 0.0
        for b, label in enumerate(labels.tolist()):
            p = [logits[b].softmax(0) for logits, _ in answers]
            r = torch.stack([factor[b] * p[i].max() for i, (_, factor) in enumerate(answers)])
            ce = torch.stack([-p_i[label].log() for p_i in p])
            omega = (-ce).softmax(0) if epoch == 0 else r.softmax(0)
            bce = [-(p[i][label] * r[i].log() + (1 - p[i][label]) * (1 - r[i]).log()) for i in range(2)]
            total = total + (omega * ce).sum() + sum(bce) / 2
        expected = expected + total / len(labels)
    metrics = method.update(x, y, step)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-4)
    assert sum(float(metrics[f"expert{i}_load_adversarial"]) for i in range(2)) == pytest.approx(1)


@pytest.mark.brief(keep=lambda case: case["name"] in ("mocse", "mocse-at"))
@pytest.mark.parametrize("name", ["mocse", "mocse-at", "mocse-iso", "mocse-at-iso"])
def test_mocse_loss(name):
    method, (x, y) = made(name, loss={"binary": 0.7}), batch()
    images = x
    if name.startswith("mocse-at"):
        images = pgd(method.model, x, y, loss="ce", generator=step_of().generator("attack"), **method.attack)
        assert not torch.equal(images, x)
    outputs = [expert(images.double()) for expert in double(method.model).train().experts]
    scores = torch.stack([z[:, 1] - z[:, 0] for z in outputs], 1)
    aggregated = -sum(scores[b].log_softmax(0)[int(y[b])] for b in range(8)) / 8
    binary = -sum(
        outputs[n][b].log_softmax(0)[int(y[b] == n)] for n in range(CLASSES) for b in range(8)
    ) / (8 * CLASSES)  # fmt: skip
    assert float(method.update(x, y, step_of())["loss"]) == pytest.approx(float(aggregated + 0.7 * binary), rel=1e-4)


# -- gradients ---------------------------------------------------------------
@pytest.mark.parametrize("n", range(CLASSES))
def test_the_binary_loss_of_an_expert_moves_no_other(n):
    method, (x, y) = made("mocse"), batch()
    binary_losses(method.model.answers(x), y)[n].backward()
    for m, expert in enumerate(method.model.experts):
        norms = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in expert.parameters()]
        assert any(norms) == (m == n)


def test_the_confidence_loss_pulls_class_heads_only_where_they_are_wrong():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, 4, dtype=torch.float64, generator=g).requires_grad_()
    raw = torch.randn(3, 40, dtype=torch.float64, generator=g).requires_grad_()
    y = torch.randint(4, (40,), generator=g)
    confidence_loss(logits, torch.sigmoid(raw), y).backward()
    right = logits.argmax(-1) == y
    assert right.any() and not right.all()
    assert (logits.grad[right] == 0).all()
    assert (logits.grad[~right].abs().sum(-1) > 0).all() and (raw.grad != 0).all()


def test_the_target_of_the_confidence_loss_has_no_gradient():
    """Against finite differences of the loss with target, and where it is right the largest probability, held fixed."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=g)
    factor = torch.rand(2, 5, dtype=torch.float64, generator=g)
    y = torch.randint(4, (5,), generator=g)
    fixed = logits.softmax(-1)
    target = fixed[:, torch.arange(5), y]

    def loss(z):
        largest = torch.where(z.argmax(-1) == y, fixed.amax(-1), z.softmax(-1).amax(-1))
        r = factor * largest
        return -(target * r.log() + (1 - target) * (1 - r).log()).mean()

    given = logits.clone().requires_grad_()
    confidence_loss(given, factor, y).backward()
    for index in [(i, b, k) for i in range(2) for b in range(5) for k in range(4)]:
        up, down = logits.clone(), logits.clone()
        up[index] += 1e-6
        down[index] -= 1e-6
        assert float(given.grad[index]) == pytest.approx(float(loss(up) - loss(down)) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("favoured", ["best", "confidence"])
def test_soe_weights_sum_to_one_and_have_no_gradient(favoured):
    g = torch.Generator().manual_seed(0)
    logits, factor = torch.randn(3, 5, 4, generator=g).requires_grad_(), torch.rand(3, 5, generator=g).requires_grad_()
    losses = expert_losses(logits, torch.arange(5) % 4)
    weights = WEIGHTS[favoured](logits, factor, losses, 2.0)
    torch.testing.assert_close(weights.sum(0), torch.ones(5))
    assert not weights.requires_grad
    favourite = losses.argmin(0) if favoured == "best" else confidence(logits, factor).argmax(0)
    assert torch.equal(weights.argmax(0), favourite)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_soe_losses_are_finite_for_huge_logits(scale):
    logits = (torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    raw = (torch.randn(2, 8, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    y = torch.arange(8) % 4
    loss = confidence_loss(logits, torch.sigmoid(raw), y) + expert_losses(logits, y).mean()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and torch.isfinite(raw.grad).all()


# -- phases ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fractions", "epochs", "expected"),
    [((0.5, 0.5), 4, "aabb"), ((0.5, 0.5), 1, "b"), ((1.0,), 3, "aaa"), ((0.2, 0.3, 0.5), 10, "aabbbccccc")],
)
def test_phases_share_the_epochs(fractions, epochs, expected):
    phases = [{"fraction": each, "attack": name} for each, name in zip(fractions, "abc", strict=False)]
    assert "".join(phase_at(phases, epoch, epochs)["attack"] for epoch in range(epochs)) == expected


def test_phases_that_do_not_fill_the_training_are_refused():
    with pytest.raises(ConfigError, match=r"phases: the fractions sum to 0\.5"):
        made("soe", phases=[{"fraction": 0.5, "attack": "ensemble", "weights": "best"}])


# -- what moves --------------------------------------------------------------
@pytest.mark.brief(keep=lambda case: case["name"] == "sramoe")
@pytest.mark.parametrize("name", ["dwf-frozen", "sramoe"])
def test_frozen_experts_stay_as_they_are_to_the_bit(name):
    method, (x, y) = made(name), batch()
    experts, router = state(method.model.experts), state(method.model.router)
    for number in range(3):
        method.update(x, y, step_of(number))
        # Validation in between leaves the model in evaluation mode.
        method.model.eval()
        method.train_mode()
    assert not moved(experts, method.model.experts)
    assert {key for key, _ in method.model.router.named_parameters()} <= moved(router, method.model.router)
    assert not any(expert.training for expert in method.model.experts) and method.model.router.training


@pytest.mark.brief(keep=lambda case: case["name"] in ("soe", "mocse"))
@pytest.mark.parametrize("name", ["dwf", "soe", "mocse", "mocse-at"])
def test_all_parameters_move_in_joint_training(name):
    method, (x, y) = made(name), batch()
    before = state(method.model)
    for number in range(2):
        method.update(x, y, step_of(number))
    still = {key for key, _ in method.model.named_parameters()} - moved(before, method.model)
    assert not still


@pytest.mark.brief(keep=lambda case: case["name"] == "mocse")
@pytest.mark.parametrize(("name", "epoch"), [*((name, 0) for name in METHODS), ("soe", 1)])
def test_the_loss_falls_on_a_fixed_batch(name, epoch):
    method, (x, y) = made(name), batch(low=0.0, high=1.0)
    if name in ("dwf-frozen", "sramoe"):
        # A router can only choose between experts that differ: those of a fresh net all say about nothing.
        with torch.no_grad():
            for expert in method.model.experts:
                expert.head.weight.mul_(100)
    for optimizer in method.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = 0.02
    losses = [float(method.update(x, y, step_of(number, epoch))["loss"]) for number in range(30)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


@pytest.mark.brief(keep=lambda case: case["name"] == "mocse")
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_gives_nearly_the_same_loss(name):
    method, (x, y) = made(name), batch()
    expected = float(method.update(x, y, step_of())["loss"])
    method = made(name)
    method.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    metrics = method.update(x, y, step_of())
    assert all(value.dtype == torch.float32 for value in metrics.values())
    assert float(metrics["loss"]) == pytest.approx(expected, rel=0.02)


# -- whole runs --------------------------------------------------------------
@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(0)

    def split(count):
        return Split(
            torch.randint(256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=g), torch.arange(count) % 3
        )

    return Dataset(
        name="digits", classes=["a", "b", "c"], mean=[0.5] * 3, std=[0.25] * 3, sha256="0" * 64,
        metadata={"parameters": {}, "sources": []},
        augment={"crop_padding": 1, "flip": True}, image_size=SIZE, splits={"train": split(24), "val": split(9)},
    )  # fmt: skip


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    """Trains a method, and before it the runs that it starts from; returns the folder."""
    monkeypatch.setattr(runs.datasets, "load", lambda path, splits: data)

    def run(name, folder):
        out = tmp_path / folder / name
        recipe = resolved(name)["recipe"]
        starts = {each["name"]: tmp_path / "first" / each["method"] for each in recipe.get("initialize_from", [])}
        for path in starts.values():
            if not (path / "run.json").exists():
                run(path.name, "first")
        made = runs.Run(resolved=resolved(name), data=Path("none"), out=out, work=tmp_path / "w" / folder / name)
        made.initialize_from = dict(reversed(starts.items()))
        made.train()
        return out

    return run


def outcome(out):
    history = pd.read_csv(out / "history.csv").drop(columns=["seconds", "train_seconds"])
    return hash_file(out / "model.safetensors"), hash_file(out / "last.safetensors"), history.to_csv()


@pytest.mark.long
@pytest.mark.parametrize("name", ["dwf-expert-fgsm", "dwf", "dwf-frozen", "sramoe", "soe", "mocse-at"])
def test_a_run_resumes_to_the_bit_and_loads_without_what_it_started_from(name, train, tmp_path, monkeypatch):
    """24 images in batches of 8, two epochs; stopped in the first and again in the second (soe: the other phase)."""
    whole, real = train(name, "whole"), engine.Engine._set_learning_rates
    for stop_at in ((0, 1), (1, 2)):

        def stop(self, step, stop_at=stop_at):
            if (step.epoch, step.batch) == stop_at:
                self.save()
                raise Interrupted("stopped by the test")
            real(self, step)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(engine.Engine, "_set_learning_rates", stop)
            train(name, "resumed")
    assert outcome(train(name, "resumed")) == outcome(whole)

    starts = resolved(name)["recipe"].get("initialize_from", [])
    trained = {each["name"]: tmp_path / "first" / each["method"] for each in starts}
    kept = {key: load_model(path).state_dict() for key, path in trained.items()}
    for path in trained.values():
        path.rename(path.with_suffix(".gone"))
    model = load_model(whole, "last")
    x, _ = batch()
    with torch.no_grad():
        assert model(x).shape == (8, CLASSES) and torch.isfinite(model(x)).all()
    if name in ("dwf-frozen", "sramoe"):
        # Frozen from first to last: each expert is, to the bit, the run that the recipe names at its place.
        for expert, weights in zip(model.experts, kept.values(), strict=True):
            assert all(torch.equal(value, weights[key]) for key, value in expert.state_dict().items())

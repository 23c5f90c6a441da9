"""The MoE-CNN methods: what moves when, their losses against the formulas, their schedules, and that they learn."""

import copy
import math
import statistics

import pytest
import torch
from moe_setup import ALTERNATING, METHODS, PROJECT, changed, digits, kl, make, snapshot, step
from torch.nn import functional as F

from moat.attacks.parts.steps import frozen
from moat.config.recipes import resolve_recipe
from moat.methods import dramoe
from moat.methods._moe import entropy, joint_divergence, routing_metrics


def test_these_are_all_of_them():
    assert METHODS == [
        "advmoe", "advmoe-released", "dramoe", "dramoe-cgsa", "dramoe-gap", "dramoe-gsa", "dramoe-lambda1",
        "dramoe-norgat", "dramoe-norges", "pgd-at-moe",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_on_a_fixed_batch(name):
    # Clipped, the loss of joint training falls slowly; single steps go up again, so that medians are compared.
    joint = name not in ALTERNATING
    method = make(name, attack={"steps": 1})
    for optimizer in method.optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.02
    x, y = digits(32)
    method.train_mode()
    history = [method.update(x, y, step(number)) for number in range(45)]
    losses = [float(metrics["loss"]) for metrics in history]
    assert all(math.isfinite(float(value)) for metrics in history for value in metrics.values())
    assert statistics.median(losses[-10:]) < (0.9 if joint else 0.75) * statistics.median(losses[:3])
    if not joint:
        router = [float(metrics["router_loss"]) for metrics in history]
        assert statistics.median(router[-10:]) < 0.85 * statistics.median(router[:3])
        assert statistics.median(float(metrics["router_accuracy"]) for metrics in history[-10:]) > 0.6


@pytest.mark.brief(keep=lambda case: case["name"] in ("dramoe", "advmoe-released"))
@pytest.mark.parametrize("name", ALTERNATING)
def test_backbone_and_router_take_turns(name, monkeypatch):
    """Bit-identical weights of the one while the other steps; batch-norm statistics of the router may move."""
    method = make(name)
    x, y = digits(16)
    router = {id(p) for p in method.model.router.parameters()}
    turns = []
    minimize = method.minimize

    def watched(loss, optimizer):
        before = {id(p): p.detach().clone() for p in method.model.parameters()}
        minimize(loss, optimizer)
        moved = {id(p) for p in method.model.parameters() if not torch.equal(p, before[id(p)])}
        turns.append((optimizer, bool(moved & router), bool(moved - router)))
        of_optimizer = {id(p) for group in method.optimizers[optimizer].param_groups for p in group["params"]}
        assert of_optimizer == (router if optimizer == "router" else set(before) - router)

    monkeypatch.setattr(method, "minimize", watched)
    method.train_mode()
    method.update(x, y, step())
    assert turns == [("backbone", False, True), ("router", True, False)]


def test_joint_training_moves_both():
    method = make("pgd-at-moe")
    before = snapshot(method.model)
    method.train_mode()
    method.update(*digits(16), step())
    moved = changed(method.model, before)
    assert "router.head.linear.weight" in moved
    assert "trunk.blocks.0.conv1.weight" in moved


@pytest.mark.brief(keep=lambda case: case["name"] in ("dramoe", "advmoe-released"))
@pytest.mark.parametrize("name", ALTERNATING)
def test_attacks_leave_statistics_modes_and_gradients_alone(name):
    method = make(name)
    x, y = digits(16)
    method.train_mode()
    before = snapshot(method.model)
    generator = torch.Generator().manual_seed(0)
    arguments = (step(), "attack") if name.startswith("dramoe") else (generator,)
    x_adv = method.adversarial(x, y, *arguments)
    assert changed(method.model, before) == set()
    assert all(module.training for module in method.model.modules())
    assert all(p.requires_grad and p.grad is None for p in method.model.parameters())
    assert 0 < float((x_adv - x).abs().max()) <= 8 / 255 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_the_router_step_has_the_gradient_of_its_loss_though_the_backbone_stepped_in_between(monkeypatch):
    """The clean scores' graph outlives the backbone's step and the second attack."""
    method = make("advmoe", double=True, router_gradient_clip=None)
    x, y = digits(12, torch.float64)
    method.train_mode()
    router = copy.deepcopy(method.model.router)
    seen = {}
    minimize, attack = method.minimize, method.adversarial

    def watched(loss, optimizer):
        minimize(loss, optimizer)
        if optimizer == "router":
            seen["gradient"] = [p.grad.clone() for p in method.model.router.parameters()]

    def attacked(*arguments):
        seen["x_adv"] = attack(*arguments)
        return seen["x_adv"]

    monkeypatch.setattr(method, "minimize", watched)
    monkeypatch.setattr(method, "adversarial", attacked)
    method.update(x, y, step())
    clean, adv = router(x), router(seen["x_adv"])
    loss = 6 * F.cross_entropy(clean, y % 2) + 6 * kl(clean, adv).mean()
    for ours, theirs in zip(seen["gradient"], torch.autograd.grad(loss, router.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_backbone_step_has_the_loss_and_gradient_of_trades():
    method = make("dramoe", double=True)
    x, y = digits(12, torch.float64)
    x_adv = (x + 0.02).clamp(0, 1)
    method.train_mode()
    model = copy.deepcopy(method.model)
    scores, scores_adv = method.model.route_logits(x), method.model.route_logits(x_adv)
    metrics = method.backbone_step(x, x_adv, y, scores, scores_adv)
    logits, logits_adv = model(x), model(x_adv)
    loss = F.cross_entropy(logits, y) + 3 * kl(logits, logits_adv).mean()
    torch.testing.assert_close(metrics["loss"], loss.detach(), rtol=1e-12, atol=1e-12)
    parameters = [p for n, p in model.named_parameters() if not n.startswith("router")]
    ours = [p.grad for n, p in method.model.named_parameters() if not n.startswith("router")]
    for mine, theirs in zip(ours, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", ["clean_adv", "adv_clean"])
def test_an_update_of_dramoe_is_the_formulas(order, monkeypatch):
    """Weights and running statistics after one update: both steps, each image once through the router and the net."""
    method = make("dramoe", double=True, rgat={"kl_order": order})
    x, y = digits(12, torch.float64)
    x_adv = (x + 0.05 * torch.rand_like(x)).clamp(0, 1)
    monkeypatch.setattr(method, "adversarial", lambda *arguments: x_adv)
    method.train_mode()
    model = copy.deepcopy(method.model)

    def divergence(clean, adv):
        return kl(clean, adv).mean() if order == "clean_adv" else kl(adv, clean).mean()

    def step_along(loss, parameters, clip):
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        scale = min(1.0, clip / (float(norm) + 1e-6))
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                # The first step of SGD with momentum 0.9 and weight decay 5e-4 at learning rate 0.1.
                p -= 0.1 * (scale * g + 5e-4 * p)

    scores, scores_adv = model.route_logits(x), model.route_logits(x_adv)
    logits, logits_adv = (model.classify(*each) for each in ((x, scores.detach()), (x_adv, scores_adv.detach())))
    backbone = [p for n, p in model.named_parameters() if not n.startswith("router")]
    step_along(F.cross_entropy(logits, y) + 3 * divergence(logits, logits_adv), backbone, math.inf)
    disorder = entropy(scores) + entropy(scores_adv)
    loss = 6 * F.cross_entropy(scores, y % 2) + 3 * divergence(scores, scores_adv) - 0.001 * disorder
    step_along(loss, list(model.router.parameters()), 5.0)

    method.update(x, y, step())
    for name, theirs in model.state_dict().items():
        ours = method.model.state_dict()[name]
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11, msg=lambda said, n=name: f"{n}: {said}")


@pytest.mark.parametrize("order", ["clean_adv", "adv_clean"])
def test_the_attack_of_dramoe_has_the_same_order_of_the_divergences(order, monkeypatch):
    method = make("dramoe", double=True, rgat={"kl_order": order, "lambda_max": 0.5})
    model = copy.deepcopy(method.model).eval()
    x, y = digits(8, torch.float64)
    x_adv = (x + 0.03).clamp(0, 1)
    monkeypatch.setattr(dramoe, "early_stopped_pgd", lambda *arguments, ascend_loss, **options: ascend_loss(x_adv)[0])
    pairs = [(model(x), model(x_adv)), (model.route_logits(x), model.route_logits(x_adv))]
    of_net, of_router = (kl(*pair) if order == "clean_adv" else kl(*reversed(pair)) for pair in pairs)
    torch.testing.assert_close(method.adversarial(x, y, step(), "attack"), of_net + 0.5 * of_router)


def test_router_loss_of_dramoe_is_the_formula():
    method = make("dramoe", double=True)
    clean = torch.tensor([[1.0, -0.5], [0.2, 0.1], [-2.0, 1.0]], dtype=torch.float64)
    adv = torch.tensor([[0.5, 0.5], [0.3, -0.4], [-1.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([7, 4, 1])
    targets = [1, 0, 1]
    expected = 0.0
    for c, a, t in zip(clean.tolist(), adv.tolist(), targets, strict=True):
        p = [math.exp(v) / sum(map(math.exp, c)) for v in c]
        q = [math.exp(v) / sum(map(math.exp, a)) for v in a]
        h = -sum(v * math.log(v) for v in p) - sum(v * math.log(v) for v in q)
        divergence = sum(v * math.log(v / w) for v, w in zip(p, q, strict=True))
        expected += (6.0 * -math.log(p[t]) + 3.0 * divergence - 0.001 * h) / 3
    assert float(method.router_loss(clean, adv, y)) == pytest.approx(expected, abs=1e-12)


def test_without_a_target_the_router_has_consistency_only():
    method = make("advmoe", router_target="none")
    assert float(method.router_cross_entropy(torch.ones(3, 2), torch.tensor([0, 1, 2]))) == 0


@pytest.mark.parametrize("scale", [1.0, 200.0, 1e4])
def test_entropy_and_router_loss_stay_finite(scale):
    method = make("dramoe")
    clean = torch.tensor([[scale, -scale], [scale, scale], [0.0, 0.0]], requires_grad=True)
    adv = torch.tensor([[-scale, scale], [scale - 1, scale], [0.0, 1.0]], requires_grad=True)
    value = method.router_loss(clean, adv, torch.tensor([0, 1, 1]))
    value.backward()
    assert value.isfinite()
    assert clean.grad.isfinite().all()
    assert adv.grad.isfinite().all()
    assert float(entropy(torch.zeros(4, 8))) == pytest.approx(math.log(8))
    assert 0 <= float(entropy(clean.detach())) <= math.log(2)


@pytest.mark.parametrize("order", ["clean_adv", "adv_clean"])
@pytest.mark.parametrize("router_grad", ["st", "detached"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_joint_divergence_is_the_formula(order, router_grad, weight):
    method = make("dramoe", double=True)
    model = method.model
    torch.nn.init.normal_(model.head.weight)
    x, _ = digits(8, torch.float64)
    x_adv = (x + 0.03).clamp(0, 1).requires_grad_()
    with frozen(model):
        value, logits = joint_divergence(model, x, router_weight=weight, router_grad=router_grad, order=order)(x_adv)
        scores = model.route_logits(x_adv)
        torch.testing.assert_close(logits, model(x_adv), rtol=1e-12, atol=1e-12)
        routed = model.classify(x_adv, scores if router_grad == "st" else scores.detach())
        pairs = [(model(x), routed), (model.route_logits(x), scores)]
        terms = [kl(*pair) if order == "clean_adv" else kl(*reversed(pair)) for pair in pairs]
        expected = terms[0] + weight * terms[1]
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    ours, theirs = (torch.autograd.grad(v.sum(), x_adv, retain_graph=True)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    assert float(ours.abs().max()) > 0


@pytest.mark.parametrize(
    ("tail", "expected"),
    [("hold", [0, 1, 2, 2, 2]), ("continue", [0, 1, 2, 3, 4]), ("no_early_stop", [0, 1, 2, 10, 10])],
)
def test_the_patience_of_each_fifth(tail, expected):
    method = make("dramoe", rgat={"tau_after_paper": tail}, attack={"steps": 10})
    assert [method.patience(progress) for progress in (0, 0.2, 0.4, 0.6, 0.8)] == expected
    assert [method.patience(progress) for progress in (0.199, 0.399, 0.599, 0.799, 0.9999)] == expected
    # 100 epochs: the fifths begin with epochs 0, 20, 40, 60 and 80.
    assert [method.patience(step(epoch=e, epochs=100).progress) for e in (0, 20, 40, 60, 80)] == expected


@pytest.mark.parametrize(("schedule", "ends"), [("cosine_decay", (0.001, 0.0)), ("cosine_growth", (0.0, 0.001))])
def test_lambda_is_annealed(schedule, ends):
    method = make("dramoe", rgat={"lambda_schedule": schedule})
    values = [method.router_weight(progress) for progress in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([ends[0], 0.0005, ends[1]], abs=1e-12)


def test_the_variants_differ_in_what_their_names_say():
    routers = {name: make(name).recipe["model"]["router"] for name in METHODS}
    assert {name for name, router in routers.items() if router == "dcar"} == {
        "dramoe", "dramoe-norgat", "dramoe-norges", "dramoe-lambda1",
    }  # fmt: skip
    assert (routers["dramoe-gsa"], routers["dramoe-cgsa"], routers["dramoe-gap"]) == ("gsa", "cgsa", "gap")
    lambdas = {name: make(name).router_weight(0.0) for name in METHODS if name in ALTERNATING and "dramoe" in name}
    assert lambdas.pop("dramoe-norges") == 0.0
    assert lambdas.pop("dramoe-lambda1") == 1.0
    assert set(lambdas.values()) == {0.001}


def test_a_fresh_router_attack_is_on_the_stepped_backbone(monkeypatch):
    for fresh in (False, True):
        method = make("dramoe", rgat={"fresh_router_attack": fresh})
        purposes = []
        attack = method.adversarial
        monkeypatch.setattr(method, "adversarial", lambda *a, attack=attack, p=purposes: p.append(a[3]) or attack(*a))
        method.train_mode()
        method.update(*digits(8), step())
        assert purposes == ["attack", "router attack"][: 1 + fresh]


def test_what_is_logged_of_the_router():
    clean, adv = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 9.0]] * 4)
    metrics = routing_metrics(clean, adv)
    assert {k: float(v) for k, v in metrics.items() if "load" in k} == {
        "expert0_load_clean": 0.75, "expert1_load_clean": 0.25,
        "expert0_load_adversarial": 0.0, "expert1_load_adversarial": 1.0,
    }  # fmt: skip
    assert float(metrics["router_entropy_adversarial"]) == pytest.approx(9e-4, rel=0.5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", PROJECT.names("scales"))
def test_every_recipe_clips_what_its_router_learns_from(name, scale):
    recipe = resolve_recipe(PROJECT, scale, name)
    assert recipe["router_gradient_clip" if name in ALTERNATING else "gradient_clip"] == 5.0
    assert any("clipped to norm 5" in sentence for sentence in recipe["deviations"].values())


@pytest.mark.parametrize(
    ("name", "key", "loss"),
    [("advmoe", "router_gradient_clip", {"alpha": 100.0}), ("pgd-at-moe", "gradient_clip", {"beta": 100.0})],
)
def test_the_router_gradient_is_clipped(name, key, loss):
    method = make(name, **{key: 0.5}, loss=loss)
    method.train_mode()
    method.update(*digits(16), step())
    clipped = method.model.router if name == "advmoe" else method.model
    norm = torch.stack([p.grad.norm() for p in clipped.parameters()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)

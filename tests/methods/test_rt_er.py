"""RT-ER and JTDMoE: losses as textbook formulas, what moves, where images go, and how a route is flipped."""

import copy

import pytest
import torch
from moe_setup import PROJECT, changed, kl, snapshot
from torch.nn import functional as F

import moat.methods
from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.steps import ascend, ball
from moat.attacks.parts.views import views_of
from moat.base.errors import ConfigError
from moat.config.recipes import merge
from moat.methods._routed import start_momentum
from moat.methods.base import Step, build_optimizer
from moat.methods.rt_er import second_of, triangular
from moat.models import nets
from moat.models.moe import build_mixture
from moat.models.moe.dispatch import dispatch

SIZE, CLASSES = 8, 10


def images(count=16, seed=1):
    g = torch.Generator().manual_seed(seed)
    return 0.2 + 0.6 * torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64, generator=g), torch.arange(count) % CLASSES


def made(name, **changes):
    """The method in float64, its attack too short to matter."""
    short = {"attack": {"eps": 0.01, "step_size": 0.01, "steps": 1}}
    recipe = merge(merge(PROJECT.method(name), short), changes)
    kind = moat.methods.get(recipe["class"])
    torch.manual_seed(0)
    options = {**recipe["model"], "width": 1 / 16, "image_size": SIZE, "in_channels": 3, "normalize": "cifar10"}
    method = kind(kind.build(arch="resnet18", num_classes=CLASSES, options=options).double(), recipe)
    method.train_mode()
    return method


def router_of(model):
    return model.router if model.weighted else model.static_router


def step(batch=0):
    return Step(0, 0, 2, batch, 10, torch.device("cpu"))


# -- the mixture ---------------------------------------------------------------
def test_parameters_and_buffers():
    with torch.device("meta"):
        for router, trained in (("static", 4 * 11_173_962), ("learned", 44_708_140)):
            model = build_mixture("rt-er", "resnet18", 10, router=router)
            assert nets.count_parameters(model) == trained
            assert router_of(model).weight.shape == (4, 3072)
        assert nets.count_parameters(build_mixture("jtd-moe", "resnet18", 10)) == 8 * 11_173_962


@pytest.mark.parametrize("router", ["static", "learned"])
def test_each_image_is_computed_by_the_expert_of_its_highest_score(router):
    method = made("rt-er", model={"router": router})
    model, (x, _) = method.model.eval(), images()
    mean, std = (torch.tensor(v).double()[:, None, None] for v in nets.normalize.STATISTICS["cifar10"])
    weight, bias = router_of(model).weight, router_of(model).bias
    scores = torch.stack([weight @ ((i - mean) / std).flatten() for i in x]) + bias
    torch.testing.assert_close(model.route_logits(x), scores, rtol=1e-6, atol=1e-6)
    for i, e in enumerate(scores.argmax(1)):
        factor = scores[i].softmax(0)[e] if router == "learned" else 1.0
        torch.testing.assert_close(model(x)[i], factor * model.experts[e](x[i : i + 1])[0], rtol=1e-5, atol=1e-9)
    model(x).sum().backward()
    parameters = list(router_of(model).parameters())
    assert len(parameters) == (2 if router == "learned" else 0)
    assert all(float(each.grad.abs().sum()) > 0 for each in parameters)
    # What has no gradient needs none to be detached from.
    assert ("detached" in views_of(model)) == (router == "learned")


def test_one_image_of_an_expert_leaves_its_batch_norm_alone():
    modules = torch.nn.ModuleList(torch.nn.BatchNorm2d(3).double() for _ in range(3))
    x, _ = images(6)
    route = torch.tensor([0, 0, 1, 0, 0, 0])
    out = dispatch(modules, x, route)
    assert [int(module.num_batches_tracked) for module in modules] == [1, 0, 0]
    assert all(module.training for module in modules)
    torch.testing.assert_close(out[2], x[2] / (1 + 1e-5) ** 0.5, rtol=1e-9, atol=1e-9)
    expected = copy.deepcopy(modules[0])(x[route == 0])
    torch.testing.assert_close(out[route == 0], expected, rtol=1e-9, atol=1e-9)


def test_a_route_is_flipped_by_the_closed_form_and_not_by_less():
    """The router is linear: r_i - r_j over the L1 norm of W_i - W_j, in pixels, takes an image from i to j."""
    model, (x, _) = made("rt-er").model.eval(), images(32)
    std = torch.tensor(nets.normalize.STATISTICS["cifar10"][1]).double()[:, None, None]
    scores, weight = model.route_logits(x), (router_of(model).weight.view(4, 3, SIZE, SIZE) / std).flatten(1).double()
    i, j = scores.argmax(1), second_of(scores)
    difference = weight[i] - weight[j]
    budget = (scores.gather(1, i[:, None]) - scores.gather(1, j[:, None]))[:, 0] / difference.abs().sum(1)
    for factor, flips in ((1.01, True), (0.99, False)):
        moved = x - (factor * budget)[:, None, None, None] * difference.sign().view_as(x)
        after = model.route_logits(moved)
        lead = after.gather(1, i[:, None]) - after.gather(1, j[:, None])
        assert bool((lead < 0).all()) is flips
    # At 8/255 nearly every image can be sent elsewhere; that is why the views ``joint…`` exist.
    assert float((budget <= 8 / 255).double().mean()) > 0.9


def test_the_joint_view_leads_images_to_the_other_expert_and_the_experts_alone_do_not_ask():
    model, (x, _) = made("rt-er").model.eval(), images(64)
    with torch.no_grad():
        for expert in model.experts:
            expert.head.weight.mul_(10)
    y, before, views = model(x).argmax(1), model.route_logits(x).argmax(1), views_of(model)
    reached = {}
    for name in ("expert1", "joint1"):
        found = ascend(views[name].module, x, cross_entropy(y), ball(x, 8 / 255), step_size=2 / 255, steps=10)
        after = model.route_logits(found).argmax(1)
        reached[name] = float((after[before != 1] == 1).double().mean())
    # Of 192 pixels; of 3,072 nearly all can be reached.
    assert reached["joint1"] > 0.5 > 0.2 > reached["expert1"], reached


# -- training -------------------------------------------------------------------
def test_the_loss_is_its_formula(monkeypatch):
    method, (x, y) = made("rt-er"), images()
    model = method.model
    x_adv, x_second = images(seed=2)[0], images(seed=3)[0]
    given = iter([x_adv, x_second])
    monkeypatch.setattr(type(method), "against", lambda *_: next(given))
    reference = copy.deepcopy(model)
    scores = reference.route_logits(x)
    second = scores.argsort(1, descending=True)[:, 1]

    def by_expert(x, route):
        parts = torch.zeros(len(x), CLASSES, dtype=x.dtype)
        for e, expert in enumerate(reference.experts):
            if int((route == e).sum()) > 1:
                parts[route == e] = expert(x[route == e])
            elif int((route == e).sum()) == 1:
                parts[route == e] = expert.eval()(x[route == e])
                expert.train()
        return parts

    ce = F.cross_entropy(by_expert(x_adv, reference.route_logits(x_adv).argmax(1)), y)
    clean = by_expert(x, second)
    expected = ce + 6 * kl(clean, by_expert(x_second, second)).mean()
    found = method.update(x, y, step())
    torch.testing.assert_close(found["loss"], expected.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.long
def test_a_static_router_never_moves_and_a_learned_one_does():
    for router, moves in (("static", False), ("learned", True)):
        method, (x, y) = made("rt-er", model={"router": router}), images()
        before = snapshot(router_of(method.model))
        for batch in range(3):
            method.update(x, y, step(batch))
        assert bool(changed(router_of(method.model), before)) is moves


def test_an_expert_without_images_keeps_its_weights_and_steps_as_ever_when_it_has_some():
    """Its first gradient comes later than the others': the fused step of SGD takes that, and so does its momentum."""
    torch.manual_seed(0)
    experts = torch.nn.ModuleList(torch.nn.Linear(3, 2) for _ in range(2))
    found = build_optimizer(list(experts.parameters()), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
    start_momentum(found)
    book = copy.deepcopy(experts)
    expected = torch.optim.SGD(book.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=False)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    for route in ([0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]):
        for modules, optimizer in ((experts, found), (book, expected)):
            optimizer.zero_grad(set_to_none=True)
            dispatch(modules, x, torch.tensor(route)).square().sum().backward()
            optimizer.step()
        for ours, theirs in zip(experts.parameters(), book.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_there_is_no_second_expert_of_one():
    with pytest.raises(ConfigError, match="model.experts"):
        PROJECT.check_recipe(merge(PROJECT.method("rt-er"), {"model": {"experts": 1}}), "rt-er", [])


def test_the_official_rate_is_a_triangle():
    cycle = {"low": 5e-5, "high": 1e-4, "half_cycle": 500}
    assert [triangular(batch, **cycle) for batch in (0, 250, 500, 750, 1000)] == pytest.approx(
        [5e-5, 7.5e-5, 1e-4, 7.5e-5, 5e-5]
    )
    for name in ("rt-er-official", "jtd-moe-official"):
        method = made(name)
        for optimizer, each in method.optimizers.items():
            assert isinstance(each, torch.optim.Adam)
            at = Step(0, 2, 130, 50, 100, torch.device("cpu"))
            assert method.learning_rate(optimizer, at) == pytest.approx(7.5e-5)


# -- JTDMoE ---------------------------------------------------------------------
@pytest.mark.brief(keep=lambda case: case["combine"] == "logits")
@pytest.mark.parametrize(("alpha", "part"), [(0.0, "standard"), (1.0, "robust")])
@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_the_dual_model_at_its_ends_is_one_mixture(alpha, part, combine):
    torch.manual_seed(0)
    options = {"width": 1 / 16, "image_size": SIZE, "alpha": alpha, "combine": combine}
    model, (x, _) = build_mixture("jtd-moe", "resnet18", CLASSES, **options).double().eval(), images()
    logits = getattr(model, part)(x)
    expected = logits if combine == "logits" else F.log_softmax(logits, 1)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)


def test_each_step_moves_its_own_mixture_only():
    method, (x, y) = made("jtd-moe", model={"experts": 2}), images()
    model = method.model
    for own, other, update in (
        ("robust", "standard", lambda: method.robust_step(x, y, step())),
        ("standard", "robust", lambda: method.standard_step(x, y)),
    ):
        before = {part: snapshot(getattr(model, part)) for part in ("robust", "standard")}
        update()
        assert changed(getattr(model, own), before[own]) and not changed(getattr(model, other), before[other])
        assert all(module.training for module in model.modules())


@pytest.mark.parametrize("regularise", ["all", "second"])
def test_the_losses_of_both_steps_are_their_formulas(monkeypatch, regularise):
    method, (x, y) = made("jtd-moe", model={"experts": 2}, regularise=regularise), images()
    others = [images(seed=seed)[0] for seed in (2, 3, 4)]
    given = iter(others)
    monkeypatch.setattr(type(method), "against", lambda *_: next(given))
    # In evaluation mode a forward pass changes nothing that the next one sees.
    method.model.eval()
    reference = copy.deepcopy(method.model)
    expected = F.cross_entropy(reference.robust(others[0]), y)
    for expert in range(2 if regularise == "all" else 1):
        route = torch.full((16,), expert) if regularise == "all" else second_of(reference.robust.route_logits(x))
        logits = [dispatch(reference.robust.experts, images, route) for images in (x, others[1 + expert])]
        expected = expected + 6 * kl(*logits).mean()
    found = method.robust_step(x, y, step())
    torch.testing.assert_close(found["loss"], expected.detach(), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        robust, standard = method.model.robust(x), reference.standard(x)
    found = method.standard_step(x, y)
    wanted = F.cross_entropy(0.3 * standard + 0.7 * robust, y)
    torch.testing.assert_close(found["standard_loss"], wanted, rtol=1e-9, atol=1e-12)


def test_all_pairs_of_experts_are_views():
    model = made("jtd-moe").model
    assert {name for name in views_of(model) if name.startswith("joint")} == {
        f"joint{s}-{r}" for s in range(4) for r in range(4)
    }
    x, _ = images()
    paths = model.eval().route_logits(x).argmax(1)
    parts = [getattr(model, part).route_logits(x).argmax(1) for part in ("standard", "robust")]
    assert torch.equal(paths, 4 * parts[0] + parts[1])
    logits, usage = model.mix(x)
    assert torch.equal(logits, model(x)) and torch.allclose(usage.sum(1), torch.ones(16, dtype=torch.float64))

"""Views of mixtures against independent definitions, and the attack that is made of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat import attacks
from moat.attacks.moe_adaptive import stages
from moat.attacks.parts.cascade import run_cascade
from moat.attacks.parts.setting import both_gradients
from moat.attacks.parts.steps import frozen
from moat.attacks.parts.views import RouterScores, view, views_of
from moat.base.errors import ConfigError
from moat.models import moe, nets

NET = {"width": 1 / 16, "image_size": 8, "normalize": ([0.3], [0.35])}
EPS = 0.1


def settle(model, seed=0):
    """Evaluation mode with batch norm statistics that are not the initial ones, in float64."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


@pytest.fixture(scope="module")
def moe_cnn():
    torch.manual_seed(0)
    model = settle(moe.build_moe_cnn("resnet18", 10, experts=3, ratio=0.5, **NET))
    with torch.no_grad():
        # Scores that spread over the experts, so that all three are chosen.
        model.router.head.linear.weight.mul_(20)
        scores = model.route_logits(images(256))
        model.router.head.linear.bias.sub_(scores.median(0).values)
    return model


def mixture(kind, **options):
    torch.manual_seed(0)
    return settle(moe.build_mixture(kind, "resnet18", 10, **NET, **options))


def images(n=24, seed=1):
    return torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x, allow_unused=True)[0]


# -- MoE-CNN -------------------------------------------------------------------


def plain_path(model, x, expert):
    """The narrow dense net that an expert is, layer by layer, without any of the routing code."""

    def conv(layer, x):
        w = layer.out_channels
        return F.conv2d(x, layer.weight[expert * w : (expert + 1) * w], stride=layer.stride, padding=layer.padding)

    def norm(bn, x):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    x = model.trunk.stem(model.normalize(x))
    for block in model.trunk.blocks:
        y = F.relu(norm(block.bn1, conv(block.conv1, x)))
        x = F.relu(norm(block.bn2, conv(block.conv2, y)) + block.shortcut(x))
    return model.head(x.mean((2, 3)))


def test_the_views_of_a_moe_cnn(moe_cnn):
    assert list(views_of(moe_cnn)) == ["straight-through", "detached", "soft", "path0", "path1", "path2"]
    assert set(moe_cnn.route_logits(images()).argmax(1).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("expert", range(3))
def test_a_path_is_the_expert_alone(expert, moe_cnn):
    x = images()
    path = view(moe_cnn, f"path{expert}")
    torch.testing.assert_close(path(x), plain_path(moe_cnn, x, expert), rtol=0, atol=1e-10)
    expected = gradient(lambda x: plain_path(moe_cnn, x, expert)[:, 0], x)
    torch.testing.assert_close(gradient(lambda x: path(x)[:, 0], x), expected, rtol=0, atol=1e-10)


def test_the_soft_view_weighs_all_paths(moe_cnn):
    def soft(x):
        weights = moe_cnn.router(x).softmax(1)
        return sum(weights[:, e : e + 1] * plain_path(moe_cnn, x, e) for e in range(3))

    x = images()
    torch.testing.assert_close(view(moe_cnn, "soft")(x), soft(x), rtol=0, atol=1e-10)
    found, expected = (gradient(lambda x, f=f: f(x)[:, 0], x) for f in (view(moe_cnn, "soft"), soft))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    fixed = gradient(lambda x: view(moe_cnn, "detached")(x)[:, 0], x)
    assert (found - fixed).abs().max() > 1e-6


def test_the_detached_view_is_the_model_with_fixed_routes(moe_cnn):
    x = images()
    routes = moe_cnn.route_logits(x).argmax(1)

    def fixed(x):
        return torch.stack([plain_path(moe_cnn, x[i : i + 1], e)[0] for i, e in enumerate(routes.tolist())])

    torch.testing.assert_close(view(moe_cnn, "detached")(x), moe_cnn(x), rtol=0, atol=1e-12)
    found = gradient(lambda x: view(moe_cnn, "detached")(x)[:, 0], x)
    torch.testing.assert_close(found, gradient(lambda x: fixed(x)[:, 0], x), rtol=0, atol=1e-10)
    assert (found - gradient(lambda x: moe_cnn(x)[:, 0], x)).abs().max() > 1e-6


# -- model-level mixtures ------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        ("dwf", {"experts": 3}, ["detached", "average", "expert0", "expert1", "expert2"]),
        ("sramoe", {}, ["detached", "average", "expert0", "expert1"]),
        ("soe", {"experts": 2}, ["average", "soft", "expert0", "expert1"]),
        ("mocse", {}, ["true_logit", "probability", *(f"expert{n}" for n in range(10))]),
        ("mocse", {"aggregation": "probability"}, ["logodds", "true_logit", *(f"expert{n}" for n in range(10))]),
    ],
)
def test_the_views_of_mixtures(kind, options, names):
    model = mixture(kind, **options)
    assert list(views_of(model)) == ["straight-through", *names]
    x, y = images(6), torch.arange(6)
    found = stages(model, eps=EPS, step_size=EPS / 2, steps=1, restarts=1, eot=1, loss="ce")
    assert list(found) == [*views_of(model), *(["router-flip"] if kind != "mocse" else [])]
    for stage in found.values():
        x_adv = stage(model, x, y, None)
        assert (x_adv - x).abs().max() <= EPS + 1e-6 and (x_adv != x).any()


@pytest.mark.parametrize(
    ("kind", "options", "setting", "gradients"),
    [
        ("dwf", {"experts": 3}, {"attack": "fgsm", "eps": EPS}, ["straight-through", "detached"]),
        ("sramoe", {}, {"attack": "fgsm", "eps": EPS}, ["straight-through", "detached"]),
        # The choice of the most confident expert has no gradient that could be left out.
        ("soe", {"experts": 2}, {"attack": "fgsm", "eps": EPS}, ["straight-through"]),
        ("mocse", {}, {"attack": "fgsm", "eps": EPS}, ["straight-through"]),
        ("dwf", {"experts": 3}, {"attack": "fgsm", "eps": EPS, "view": "average"}, ["average"]),
        ("dwf", {"experts": 3}, {"attack": "none"}, ["straight-through"]),
    ],
)
def test_the_gradients_by_which_a_net_is_measured(kind, options, setting, gradients):
    model, x, y = mixture(kind, **options), images(4), torch.arange(4)
    found = both_gradients(attacks.resolve("setting", setting), model)
    assert list(found) == gradients
    if "detached" in gradients:
        expected = attacks.fgsm(view(model, "detached"), x, y, eps=EPS)
        assert torch.equal(found["detached"](model, x, y), expected)
        assert found["detached"].parameters["view"] == "detached"


def test_views_of_a_weighted_mixture():
    model, x = mixture("dwf", experts=3), images(6)
    logits = [expert(x) for expert in model.experts]
    for e, each in enumerate(logits):
        torch.testing.assert_close(view(model, f"expert{e}")(x), each)
    torch.testing.assert_close(view(model, "average")(x), sum(logits) / 3)
    weights = model.router(x).softmax(1).detach()
    expected = gradient(lambda x: sum(weights[:, e] * model.experts[e](x)[:, 0] for e in range(3)), x)
    torch.testing.assert_close(gradient(lambda x: view(model, "detached")(x)[:, 0], x), expected)


def test_views_of_a_synergy():
    model, x = mixture("soe", experts=2), images(6)
    logits, factor = zip(*(expert.answer(x) for expert in model.experts), strict=True)
    torch.testing.assert_close(view(model, "average")(x), (logits[0] + logits[1]) / 2)
    sure = torch.stack([t * z.softmax(1).max(1).values for z, t in zip(logits, factor, strict=True)])
    weights = sure.exp() / sure.exp().sum(0)
    torch.testing.assert_close(
        view(model, "soft")(x), weights[0][:, None] * logits[0] + weights[1][:, None] * logits[1]
    )
    torch.testing.assert_close(RouterScores(model)(x), sure.T)


def test_views_of_class_experts():
    model, x, y = mixture("mocse"), images(6), torch.tensor([3, 1, 3, 0, 9, 3])
    false, true = (model.answers(x)[..., k].T for k in (0, 1))
    torch.testing.assert_close(view(model, "true_logit")(x), true)
    torch.testing.assert_close(view(model, "probability")(x), torch.sigmoid(true - false))
    question = views_of(model)["expert3"]
    assert question.labels(y).tolist() == [1, 0, 1, 0, 0, 1]
    expected = F.binary_cross_entropy_with_logits((true - false)[:, 3], (y == 3).double(), reduction="none")
    found = F.cross_entropy(question.module(x), question.labels(y), reduction="none")
    torch.testing.assert_close(found, expected)


# -- any model -----------------------------------------------------------------


def test_a_model_without_experts_has_one_view():
    model = settle(nets.build("resnet18", 10, **NET))
    assert list(views_of(model)) == ["straight-through"]
    with pytest.raises(ConfigError, match="no view 'detached'; it has straight-through"):
        view(model, "detached")
    with pytest.raises(ConfigError, match="no experts and no router"):
        attacks.moe_adaptive(model, images(2), torch.zeros(2, dtype=torch.long), eps=EPS, step_size=EPS)


def test_a_model_from_elsewhere_can_name_its_views():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.net = nn.Identity(), nn.Flatten()

        def forward(self, x):
            return self.net(x) * self.router(x).mean((1, 2, 3))[:, None]

        def attack_views(self):
            return {"ungated": self.net}

    model, x = Mine(), images(2)
    assert list(views_of(model)) == ["straight-through", "detached", "ungated"]
    torch.testing.assert_close(gradient(lambda x: view(model, "detached")(x)[:, 0], x)[:, 1:].abs().sum().item(), 0.0)
    assert torch.equal(view(model, "ungated")(x), x.flatten(1))


# -- the attack ----------------------------------------------------------------


def test_the_worst_case_keeps_the_first_success_of_the_stages():
    """Three kinds of examples by their first pixel: misclassified anyway, by one stage each, robust."""

    class Steps(nn.Module):
        def forward(self, x):
            wrong = (x[:, 0, 0, 0] > 0.5).double()
            return torch.stack([1 - wrong, wrong], 1)

    seen = []

    def stage(pixel, reach):
        def attack(model, x, y, generator):
            seen.append(len(x))
            found = x.clone()
            found[:, 0, 0, pixel] = 0.25
            found[:, 0, 0, 0] = torch.where(x[:, 0, 0, 0] > reach, 0.75, x[:, 0, 0, 0])
            return found

        return attack

    x = torch.zeros(4, 1, 1, 3, dtype=torch.float64)
    x[:, 0, 0, 0] = torch.tensor([0.875, 0.45, 0.25, 0.125], dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.long)
    found, misclassified = run_cascade({"a": stage(1, 0.4), "b": stage(2, 0.2)}, Steps(), x, y)
    assert misclassified == {"clean": 1, "a": 1, "b": 1} and seen == [3, 2]
    assert found[:, 0, 0].tolist() == [[0.875, 0, 0], [0.75, 0.25, 0], [0.75, 0, 0.25], [0.125, 0, 0]]


def test_the_flip_changes_routes_and_then_maximizes_the_loss(moe_cnn):
    x, y = images(), torch.zeros(24, dtype=torch.long)
    flip = stages(moe_cnn, eps=EPS, step_size=EPS / 4, steps=6, restarts=1, eot=1, loss="margin")["router-flip"]
    generator = torch.Generator().manual_seed(0)
    clean = moe_cnn.route_logits(x).argmax(1)
    with torch.no_grad():
        found = flip(moe_cnn, x, y, generator)
        direct = attacks.pgd(
            view(moe_cnn, "detached"), x, y, eps=EPS, step_size=EPS / 4, steps=6,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        flipped, kept = ((moe_cnn.route_logits(z).argmax(1) != clean).double().mean() for z in (found, direct))
    assert (found - x).abs().max() <= EPS + 1e-6
    assert flipped > 0.6 and flipped > kept + 0.2


class HardGated(nn.Module):
    """Two small nets of which a router chooses one; the straight-through gate passes on its scores' gradient."""

    def __init__(self, loudness):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 10))
                                     for _ in range(2))  # fmt: skip
        self.router = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
        self.loudness = loudness

    def route_logits(self, x):
        return self.loudness * self.router(x - 0.5)

    def forward(self, x):
        # Louder scores choose the same expert. Their gradient is all that is left of the gradient then.
        scores, both = self.route_logits(x), torch.stack([expert(x) for expert in self.experts], 1)
        chosen = F.one_hot(scores.argmax(1), 2).float()
        return (both * (chosen + scores - scores.detach())[..., None]).sum(1)


@pytest.fixture(scope="module")
def masked(digits):
    torch.manual_seed(0)
    model = HardGated(loudness=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    x, y = digits[0][:1280], digits[1][:1280]
    for _ in range(6):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    model.loudness = 1e6
    return model.eval()


def test_a_gate_that_masks_gradients_fools_plain_attacks_and_not_the_adaptive_one(masked, digits):
    x, y = digits[0][1300:1400].contiguous(), digits[1][1300:1400]
    few = {"eps": 16 / 255, "n_iter": 10, "n_targets": 1, "n_queries": 10}

    def left(x_adv):
        with torch.no_grad():
            return (masked(x_adv).argmax(1) == y).double().mean().item()

    plain = left(attacks.autoattack(masked, x, y, **few))
    detached = left(attacks.autoattack(view(masked, "detached"), x, y, **few))
    adaptive = left(attacks.moe_adaptive(masked, x, y, eps=16 / 255, step_size=4 / 255, steps=10))
    assert left(x) > 0.8
    assert plain > detached + 0.3 and plain > adaptive + 0.3, (plain, detached, adaptive)


@pytest.mark.long
def test_the_adaptive_attack_is_at_least_each_of_its_stages(moe_cnn):
    x = images()
    with torch.no_grad():
        y = moe_cnn(x).argmax(1)
    options = {"eps": 0.03, "step_size": 0.01, "steps": 4}
    whole = attacks.moe_adaptive(moe_cnn, x, y, **options, generator=torch.Generator().manual_seed(0))
    with frozen(moe_cnn), torch.no_grad():
        survivors = (moe_cnn(whole).argmax(1) == y).sum()
        for name, stage in stages(moe_cnn, **options, restarts=1, eot=1, loss="ce").items():
            alone = stage(moe_cnn, x, y, torch.Generator().manual_seed(0))
            assert survivors <= (moe_cnn(alone).argmax(1) == y).sum(), name

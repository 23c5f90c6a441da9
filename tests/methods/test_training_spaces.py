"""Every method that attacks, in every space: a whole update against a textbook loop on normalised tensors, in float64.

The textbook holds images as z = (x - mean) / std, takes its signed steps there, cuts them to the ball and to the box
of the space, and shows the net z * std + mean, which for the model's own statistics is what a net without a
normalisation of its own would be shown as z by a loader that normalises.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import moat.methods
from moat.base import plugins
from moat.config.project import Project
from moat.config.recipes import merge, resolve_run
from moat.methods.base import AdversarialMethod, Step
from moat.methods.dwf_expert_fgsm import draw_one
from moat.models.nets.normalize import STATISTICS

PROJECT = Project(Path(__file__).parents[2])
OWN = ((0.49, 0.48, 0.2), (0.25, 0.24, 0.5))
PRINTED = {"mean": [0.4377, 0.4438, 0.4728], "std": [0.198, 0.201, 0.197]}
ATTACK = {"eps": 0.1, "step_size": 0.04, "steps": 3}
CLASSES = 4

# attack_space, the statistics that it means, the box that it cuts to (None: to nothing but the ball), and whether the
# start is cut to it, too.
SPACES = {
    "pixel": ({"name": "pixel"}, ((0.0,), (1.0,)), lambda mean, std: (0.0, 1.0), True),
    "noclip": ({"name": "normalised_noclip"}, OWN, lambda mean, std: (-torch.inf, torch.inf), True),
    "noclip, as printed": (
        {"name": "normalised_noclip", "statistics": PRINTED},
        (PRINTED["mean"], PRINTED["std"]),
        lambda mean, std: (-torch.inf, torch.inf),
        True,
    ),
    "clip01, ImageNet": (
        {"name": "normalised_clip01", "statistics": "imagenet"},
        STATISTICS["imagenet"],
        lambda mean, std: (0.0, 1.0),
        False,
    ),
    "valid": ({"name": "normalised_valid"}, OWN, lambda mean, std: (-mean / std, (1 - mean) / std), True),
}


def column(values):
    """As a model holds them: rounded to float32."""
    return torch.tensor(values, dtype=torch.float32).double().view(1, -1, 1, 1)


def cross_entropy(logits, y):
    return -logits.log_softmax(1)[torch.arange(len(y)), y]


def kl(p, q):
    """KL(p || q) of each example, from logits."""
    p, q = p.softmax(1), q.softmax(1)
    return (p * (p / q).log()).sum(1)


def entropy(scores):
    p = scores.softmax(1)
    return -(p * p.log()).sum(1).mean()


class Textbook:
    """A copy of a method's model, attacked and trained by the book."""

    def __init__(self, method, space, x, y, step):
        self.model, self.recipe, self.x, self.y, self.step = copy.deepcopy(method.model), method.recipe, x, y, step
        _, statistics, box, self.start_is_cut = SPACES[space]
        self.mean, self.std = map(column, statistics)
        self.low, self.high = box(self.mean, self.std)
        self.eval = copy.deepcopy(self.model).eval()

    def examples(self, objective, options=None, *, x=None, y=None, purpose="attack", tau=None, noise=0.0):
        """Signed steps on ``objective(images) -> (loss per example, logits)``; ``tau``: patience, None for no stop."""
        options = options or self.recipe["attack"]
        x, y = self.x if x is None else x, self.y if y is None else y
        eps, random = options["eps"], self.step.generator(purpose)
        z = z0 = (x - self.mean) / self.std
        start = options.get("random_start", "uniform")
        if start == "normal":
            z = z0 + 0.001 * torch.randn(z.shape, dtype=z.dtype, generator=random)
        elif start == "uniform":
            z = z0 + eps * (2 * torch.rand(z.shape, dtype=z.dtype, generator=random) - 1)
        if self.start_is_cut and start is not False:
            z = z.clamp(self.low, self.high)
        patience, active = torch.full_like(y, tau or 0), torch.ones_like(y, dtype=torch.bool)
        for _ in range(options["steps"]):
            z = z.detach().requires_grad_()
            loss, logits = objective(z * self.std + self.mean)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
            moved = z + options["step_size"] * gradient.sign()
            if noise:
                moved = moved + noise * torch.randn(z.shape, dtype=z.dtype, generator=random)
            moved = torch.minimum(torch.maximum(moved, z0 - eps), z0 + eps).clamp(self.low, self.high)
            if tau is not None:
                wrong = logits.argmax(1) != y
                active = active & ~(wrong & (patience == 0))
                patience = patience - (active & wrong).long()
                moved = torch.where(active[:, None, None, None], moved, z)
            z = moved.detach()
        return z.clamp(self.low, self.high) * self.std + self.mean

    def ce(self, net=None, y=None):
        net, y = net or self.eval, self.y if y is None else y

        def objective(images):
            logits = net(images)
            return cross_entropy(logits, y), logits

        return objective

    def divergence(self, router_weight=0.0):
        """KL(F(x) || F(x')), and of the router's scores with a weight."""
        clean = self.eval(self.x).detach()
        scores = self.eval.route_logits(self.x).detach() if router_weight else None

        def objective(images):
            logits = self.eval(images)
            of_router = router_weight * kl(scores, self.eval.route_logits(images)) if router_weight else 0.0
            return kl(clean, logits) + of_router, logits

        return objective

    def descend(self, loss, optimizer="optimizer", only=lambda name: True, clip=None):
        """One step of SGD on those parameters that move and whose names fit."""
        parameters = [p for name, p in self.model.named_parameters() if p.requires_grad and only(name)]
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            parameter.grad = gradient
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        options = {key: self.recipe[optimizer][key] for key in ("lr", "momentum", "weight_decay")}
        torch.optim.SGD(parameters, **options).step()
        self.eval.load_state_dict(self.model.state_dict())

    def trades(self, clean, adv):
        return cross_entropy(clean, self.y).mean() + self.recipe["loss"]["beta"] * kl(clean, adv).mean()


# -- the methods, by the book ------------------------------------------------------
def pgd_at(book):
    book.descend(cross_entropy(book.model(book.examples(book.ce())), book.y).mean())


def pgd_at_half(book):
    x, y, half = book.x, book.y, len(book.y) // 2
    x_adv = book.examples(book.ce(y=y[:half]), x=x[:half], y=y[:half])
    book.descend(cross_entropy(book.model(torch.cat([x_adv, x[half:]])), y).mean())


def trades(book):
    x_adv = book.examples(book.divergence())
    book.descend(book.trades(book.model(book.x), book.model(x_adv)))


def sparse(book):
    x_adv = book.examples(book.divergence())
    loss = book.trades(book.model(book.x), book.model(x_adv))
    book.descend(loss, "mask_optimizer", lambda name: name.endswith("scores"))


def fat(book):
    x_adv = book.examples(book.ce(), tau=0, noise=book.recipe["friendly"]["noise"])
    book.descend(cross_entropy(book.model(x_adv), book.y).mean())


def fat_trades(book):
    x_adv = book.examples(book.divergence(), tau=0)
    book.descend(book.trades(book.model(book.x), book.model(x_adv)))


def mart(book):
    x_adv, rows = book.examples(book.ce()), torch.arange(len(book.y))
    clean, adv = book.model(book.x), book.model(x_adv)
    c, q = clean.softmax(1), adv.softmax(1)
    others = q.clone()
    others[rows, book.y] = 0
    boosted = -q[rows, book.y].log() - (1 - others.max(1).values).log()
    book.descend((boosted + book.recipe["loss"]["beta"] * kl(clean, adv) * (1 - c[rows, book.y])).mean())


def hybrid(book):
    shrunk = {**book.recipe["attack"], "eps": 0.1 * ATTACK["eps"], "step_size": 0.1 * ATTACK["step_size"]}
    x_adv = book.examples(book.ce(), shrunk)
    clean, adv = (cross_entropy(book.model(images), book.y).mean() for images in (book.x, x_adv))
    book.descend((clean + adv) / 2)


def pgd_at_moe(book):
    x_adv = book.examples(book.divergence())
    book.descend(book.trades(book.model(book.x), book.model(x_adv)), clip=book.recipe["gradient_clip"])


def alternating(book, *, weight, tau, fresh):
    """ADVMoE and DRAMoE: the backbone's step, then the router's."""
    of_router, loss, clip = (
        lambda name: name.startswith("router"),
        book.recipe["loss"],
        book.recipe["router_gradient_clip"],
    )
    scores = book.model.route_logits(book.x)
    x_adv = book.examples(book.divergence(weight), tau=tau)
    logits = [book.model.classify(book.x, scores.detach()), book.model.classify(x_adv, book.model.route_logits(x_adv))]
    book.descend(book.trades(*logits), only=lambda name: not of_router(name))
    if fresh:
        x_adv = book.examples(book.divergence(weight), tau=tau, purpose="router attack")
    adv = book.model.route_logits(x_adv)
    target = cross_entropy(scores, book.y % 2).mean()
    router = loss.get("alpha", loss.get("gamma")) * target + loss["beta"] * kl(scores, adv).mean()
    router = router - loss.get("delta", 0) * (entropy(scores) + entropy(adv))
    book.descend(router, "router_optimizer", of_router, clip)


def advmoe(book):
    alternating(book, weight=1.0, tau=None, fresh=True)


def dramoe(book):
    alternating(book, weight=book.recipe["rgat"]["lambda_max"], tau=0, fresh=False)


def sramoe(book):
    x_adv = book.examples(book.ce())
    book.descend(sum(cross_entropy(book.model(images), book.y).mean() for images in (book.x, x_adv)))


def soe(book):
    if book.step.epoch == 0:
        attacked = [
            book.examples(book.ce(expert), purpose=f"attack on expert {number}")
            for number, expert in enumerate(book.eval.experts)
        ]
    else:
        attacked = [book.examples(book.ce())]
    total = 0.0
    for images, y in ((book.x, book.y), (torch.cat(attacked), torch.cat([book.y] * len(attacked)))):
        answers, rows = [expert.answer(images) for expert in book.model.experts], torch.arange(len(y))
        losses = torch.stack([cross_entropy(logits, y) for logits, _ in answers])
        confidences = torch.stack([factor * logits.softmax(1).max(1).values for logits, factor in answers])
        omega = (-losses if book.step.epoch == 0 else confidences).detach().softmax(0)
        auxiliary = 0.0
        for logits, factor in answers:
            p = logits.softmax(1)
            largest = torch.where(p.argmax(1) == y, p.max(1).values.detach(), p.max(1).values)
            auxiliary = auxiliary + F.binary_cross_entropy(factor * largest, p.detach()[rows, y]) / len(answers)
        total = total + (omega * losses).sum(0).mean() + auxiliary
    book.descend(total)


def mocse_at(book):
    def scores(net, images):
        answers = [expert(images) for expert in net.experts]
        return answers, torch.stack([each[:, 1] - each[:, 0] for each in answers], 1)

    x_adv = book.examples(book.ce(lambda images: scores(book.eval, images)[1]))
    answers, logits = scores(book.model, x_adv)
    binary = sum(cross_entropy(each, (book.y == n).long()).mean() for n, each in enumerate(answers)) / len(answers)
    book.descend(cross_entropy(logits, book.y).mean() + binary)


def fgsm_examples(book):
    eps = draw_one(book.recipe["fgsm_attack"]["eps"], book.step, "fgsm epsilon")
    return book.examples(book.ce(), {"eps": eps, "step_size": eps, "steps": 1, "random_start": False})


def pgd_examples(book):
    steps = draw_one(book.recipe["pgd_attack"]["steps"], book.step, "pgd steps")
    return book.examples(book.ce(), {**book.recipe["pgd_attack"], "steps": steps}, purpose="pgd attack")


def expert_fgsm(book):
    book.descend(cross_entropy(book.model(fgsm_examples(book)), book.y).mean())


def expert_pgd(book):
    book.descend(cross_entropy(book.model(pgd_examples(book)), book.y).mean())


def dwf(book):
    images = torch.cat([book.x, fgsm_examples(book), pgd_examples(book)])
    book.descend(cross_entropy(book.model(images), book.y.repeat(3)).mean())


def rt_er(book):
    second = book.model.route_logits(book.x).argsort(1, descending=True)[:, 1]
    x_adv = book.examples(book.ce())
    of_second = book.ce(lambda images: book.eval.by_route(images, second))
    moved = book.examples(of_second, purpose="attack on the second expert")
    divergence = kl(*(book.model.by_route(images, second) for images in (book.x, moved))).mean()
    book.descend(cross_entropy(book.model(x_adv), book.y).mean() + book.recipe["loss"]["beta"] * divergence)


def jtd_moe(book):
    loss = cross_entropy(book.model.robust(book.examples(book.ce(book.eval.robust))), book.y).mean()
    for number in range(len(book.eval.robust.experts)):
        expert, of_training = book.eval.robust.experts[number], book.model.robust.experts[number]
        moved = book.examples(book.ce(expert), purpose=f"attack on expert {number}")
        loss = loss + book.recipe["loss"]["beta"] * kl(of_training(book.x), of_training(moved)).mean()
    book.descend(loss, only=lambda name: name.startswith("robust"))
    robust, standard = book.eval.robust(book.x).detach(), book.model.standard(book.x)
    mixed = (1 - book.model.alpha) * standard + book.model.alpha * robust
    book.descend(cross_entropy(mixed, book.y).mean(), only=lambda name: name.startswith("standard"))


def blockmoe(book):
    logits, routing = book.model.routed(book.examples(book.ce()))
    (p,) = routing.probabilities
    sure, even = -(p * p.log()).sum(1).mean(), -(p.mean(0) * p.mean(0).log()).sum()
    book.descend(cross_entropy(logits, book.y).mean() + book.recipe["loss"]["balance"] * (sure - even))


def adaptive_smoothing(book):
    vary, options, random = book.recipe["vary"], book.recipe["attack"], book.step.generator("attack")
    drawn = torch.rand(2, len(book.y), dtype=book.x.dtype, generator=random)
    factor = (vary["smallest"] + (vary["largest"] - vary["smallest"]) * drawn[0])[:, None, None, None]
    weight, eps, z0 = vary["mixing"] * drawn[1], factor * options["eps"], (book.x - book.mean) / book.std

    def mixture(net, images):
        g, h, gamma = net.parts(images)
        alpha = net.alpha(gamma)[:, None]
        return ((1 - alpha) * g.softmax(1) + alpha * h.softmax(1)).log(), gamma

    def distance(gamma, target):
        return -(target * gamma.sigmoid().log() + (1 - target) * (-gamma).sigmoid().log())

    z = z0 + eps * (2 * torch.rand(z0.shape, dtype=z0.dtype, generator=random) - 1)
    z = z.clamp(book.low, book.high) if book.start_is_cut else z
    for _ in range(options["steps"]):
        z = z.detach().requires_grad_()
        logits, gamma = mixture(book.eval, z * book.std + book.mean)
        loss = (1 - weight) * cross_entropy(logits, book.y) + weight * distance(gamma, 1)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        z = z + factor * options["step_size"] * gradient.sign()
        z = torch.minimum(torch.maximum(z, z0 - eps), z0 + eps).clamp(book.low, book.high)
    images = torch.cat([book.x, z.detach() * book.std + book.mean])
    logits, gamma = mixture(book.model, images)
    attacked = (torch.arange(len(images)) >= len(book.y)).double()
    bce, ce = distance(gamma, attacked), cross_entropy(logits, book.y.repeat(2))
    loss = ((2 - attacked) * (bce + 0.5 * ce + 0.1 * bce * ce)).mean()
    parameters = [p for p in book.model.parameters() if p.requires_grad]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, book.recipe["gradient_clip"])
    torch.optim.AdamW(parameters, **book.recipe["adamw"]).step()


BOOK = {
    "pgd-at": pgd_at,
    "pgd-at-half": pgd_at_half,
    "trades": trades,
    "pgd-at-sparse": sparse,
    "fat": fat,
    "fat-trades": fat_trades,
    "mart": mart,
    "hybrid": hybrid,
    "pgd-at-moe": pgd_at_moe,
    "advmoe": advmoe,
    "dramoe": dramoe,
    "sramoe": sramoe,
    "soe": soe,
    "mocse-at": mocse_at,
    "dwf-expert-fgsm": expert_fgsm,
    "dwf-expert-pgd": expert_pgd,
    "dwf": dwf,
    "dwf-frozen": dwf,
    "rt-er": rt_er,
    "jtd-moe": jtd_moe,
    "blockmoe": blockmoe,
    "adaptive-smoothing": adaptive_smoothing,
}
# The recipe of a class whose recipes have other names.
RECIPES = {"blockmoe": "blockmoe-ent"}
# Of the recipe beside the attack: fewer experts.
FEWER = {"model": {"experts": 2}}
CHANGES = dict.fromkeys(("sramoe", "soe", "dwf", "dwf-frozen", "rt-er", "jtd-moe", "blockmoe"), FEWER)
# Two phases of equal length.
EPOCHS = {"soe": (0, 1)}


def made(name, space):
    recipe = PROJECT.method(RECIPES.get(name, name))
    attacks = {key: ATTACK for key in ("attack", "alpha_attack") if key in recipe}
    if "pgd_attack" in recipe:
        attacks["pgd_attack"] = {"eps": 0.1, "step_size": 0.04, "steps": [2, 3]}
    # A step that is short enough for the second attack of a batch to find gradients that are no rounding noise.
    slow = {key: {"lr": 0.002} for key in recipe if key.endswith("optimizer")}
    recipe = merge(recipe, {**attacks, **slow, **CHANGES.get(name, {}), "attack_space": SPACES[space][0]})
    kind = moat.methods.get(recipe["class"])
    torch.manual_seed(0)
    options = {**recipe.get("model", {}), "width": 1 / 16, "image_size": 8, "in_channels": 3, "normalize": OWN}
    model = kind.build(arch="resnet18", num_classes=CLASSES, options=options).double()
    # Heads that are sure of something, so that some examples are right and others are not.
    for key, parameter in model.named_parameters():
        if key.endswith("head.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    method = kind(model, recipe)
    method.train_mode()
    method.begin_epoch(0)
    return method


def batch():
    """Some pixels black and some white: there, the bounds of an image bind."""
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (x * 2 - 0.5).clamp(0, 1), torch.arange(6) % CLASSES


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Methods compute their losses in float32 at least; here, in float64."""
    torch.set_num_threads(1)
    narrow = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else narrow(self))


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_a_variant_starts_from_runs_of_its_own_space(scale):
    """At every scale, also where the scale overrides what the recipe that it extends starts from."""
    seen = set()
    for name in PROJECT.names("methods"):
        if "attack_space" not in PROJECT.method(name):
            continue
        run = resolve_run(PROJECT, scale, dataset="digits", arch="resnet18", method=name, seed=0)
        for start in run["recipe"].get("initialize_from", ()):
            recipe = PROJECT.method(start["method"])
            if recipe["class"] in BOOK:
                assert recipe.get("attack_space") == run["recipe"]["attack_space"], (name, start)
                seen.add(name)
    assert seen == {"dwf-normalised", "pgd-at-sparse-tiny-released"}


def test_these_are_all_that_attack():
    attacking = [name for name in moat.methods.names() if issubclass(moat.methods.get(name), AdversarialMethod)]
    assert sorted(BOOK) == attacking
    for name in moat.methods.names():
        assert ("attack_space" in plugins.recipe_parameters(name, {})) is (name in BOOK)


@pytest.mark.brief(keep=lambda case: case["space"] == "noclip" or case["name"] == "trades")
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("name", "epoch"), [(name, epoch) for name in BOOK for epoch in EPOCHS.get(name, (0,))])
def test_an_update_is_the_textbooks(name, epoch, space):
    method, (x, y) = made(name, space), batch()
    step = Step(seed=0, epoch=epoch, epochs=2, batch=0, batches=30, device=torch.device("cpu"))
    book = Textbook(method, space, x, y, step)
    before = {name: parameter.detach().clone() for name, parameter in method.model.named_parameters()}
    BOOK[name](book)
    method.update(x, y, step)
    ours, theirs = dict(method.model.named_parameters()), dict(book.model.named_parameters())
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], rtol=0, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert any(not torch.equal(before[key], ours[key]) for key in ours)

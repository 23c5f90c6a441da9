"""The attacks against a plain float64 recomputation of the textbook, and the properties of their parts."""

import pytest
import torch
from torch import nn

from moat import attacks
from moat.attacks import names
from moat.attacks.parts.steps import draw, frozen
from moat.base.errors import ConfigError, MoatError
from moat.data.seeding import generator


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def double(trained):
    """The trained net in float64, where rounding decides no sign."""
    import copy

    return copy.deepcopy(trained).double()


def textbook(model, x, y, start, eps, step_size, steps, loss):
    """One example, one pixel step at a time, in python loops over examples."""
    results = []
    for image, label, first in zip(x, y, start, strict=True):
        z = first.clone()
        for _ in range(steps):
            z.requires_grad_(True)
            gradient = torch.autograd.grad(loss(model(z[None])[0], label, model(image[None])[0].detach()), z)[0]
            z = z.detach() + step_size * gradient.sign()
            z = torch.maximum(torch.minimum(z, image + eps), image - eps).clamp(0, 1)
        results.append(z.detach())
    return torch.stack(results)


def ce(logits, label, clean):
    return -logits.log_softmax(0)[label]


def margin(logits, label, clean):
    return torch.cat([logits[:label], logits[label + 1 :]]).max() - logits[label]


def kl(logits, label, clean):
    p = clean.softmax(0)
    return (p * (p.log() - logits.log_softmax(0))).sum()


LOSSES = {"ce": ce, "margin": margin, "kl": kl}


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_pgd_is_the_textbooks(loss, double, batch):
    x, y = batch[0][:6].double(), batch[1][:6]
    noise = torch.rand(x.shape, dtype=torch.float64, generator=seeded(5)) * 2 - 1
    start = (x + 0.03 * noise).clamp(0, 1)
    expected = textbook(double, x, y, start, 0.03, 0.008, 5, LOSSES[loss])
    found = attacks.pgd(double, x, y, eps=0.03, step_size=0.008, steps=5, loss=loss, generator=seeded(5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_fgsm_and_bim_are_the_textbooks(double, batch):
    x, y = batch[0][:6].double(), batch[1][:6]
    torch.testing.assert_close(
        attacks.fgsm(double, x, y, eps=0.03), textbook(double, x, y, x, 0.03, 0.03, 1, ce), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        attacks.bim(double, x, y, eps=0.03, step_size=0.007, steps=6),
        textbook(double, x, y, x, 0.03, 0.007, 6, ce),
        rtol=0,
        atol=1e-12,
    )


def test_the_package_offers_functions_by_their_files_names():
    assert {"autoattack", "bim", "fgsm", "none", "pgd", "square"} <= set(names())
    assert all(callable(getattr(attacks, name)) for name in names())
    with pytest.raises(ConfigError, match="did you mean 'pgd'"):
        attacks.get("pgb")


def test_uniform_start_fills_the_ball_and_normal_start_stays_close(trained, batch):
    x = torch.full_like(batch[0], 0.5)
    still = {"eps": 0.1, "step_size": 0.0, "steps": 1, "generator": seeded()}
    uniform = attacks.pgd(trained, x, batch[1], **still) - x
    assert uniform.abs().max() <= 0.1 + 1e-6 and uniform.abs().max() > 0.0999
    assert uniform.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.01)
    normal = attacks.pgd(trained, x, batch[1], random_start="normal", **still) - x
    assert normal.std().item() == pytest.approx(0.001, rel=0.02)
    assert torch.equal(attacks.pgd(trained, x, batch[1], random_start=False, **still), x)


def test_one_generator_per_example_makes_examples_independent(trained, batch):
    x, y = batch

    def run(rows):
        draws = [generator(0, 0, "test", batch=row) for row in rows]
        return attacks.pgd(trained, x[rows], y[rows], eps=0.1, step_size=0.0, steps=1, generator=draws)

    whole, part = run(list(range(8))), run([5, 2])
    assert torch.equal(whole[[5, 2]], part)


@pytest.mark.parametrize("source", ["one", "each", "none"])
def test_drawn_numbers_do_not_depend_on_the_memory_format(source):
    x = torch.zeros(4, 3, 5, 5)

    def make(like):
        torch.manual_seed(1)
        sources = {"one": seeded(1), "each": [seeded(i) for i in range(4)], "none": None}
        return draw(like, torch.rand, sources[source])

    plain, last = make(x), make(x.to(memory_format=torch.channels_last))
    assert torch.equal(plain, last) and last.is_contiguous(memory_format=torch.channels_last)


def test_wrong_number_of_generators(trained, batch):
    with pytest.raises(ValueError, match="3 generators for 64 examples"):
        attacks.pgd(trained, *batch, eps=0.1, step_size=0.1, steps=1, generator=[seeded()] * 3)


class FirstPixel(nn.Module):
    """Logits (0, s) with s = 10 * (first pixel - 0.5): label 0 is lost where the pixel is above one half."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        s = self.weight * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([torch.zeros_like(s), s], 1)


class Recorder(FirstPixel):
    """Keeps the first pixels of every batch that it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x[:, 0, 0, 0].detach().clone())
        return super().forward(x)


def test_restarts_keep_the_first_success_else_the_highest_loss():
    # Steps of length 0: the result of a restart is its random start.
    n, restarts, eps = 40, 4, 0.1
    x, y = torch.full((n, 1, 2, 2), 0.45), torch.zeros(n, dtype=torch.long)

    def starts():
        draws = [generator(0, 0, "restarts", batch=i) for i in range(n)]
        once = {"eps": eps, "step_size": 0.0, "steps": 1}
        return torch.stack(
            [attacks.pgd(FirstPixel(), x, y, generator=draws, **once)[:, 0, 0, 0] for _ in range(restarts)]
        )

    pixels = starts()
    expected = []
    for column in pixels.T:
        successes = column[column > 0.5]
        expected.append(successes[0] if len(successes) else column.max())
    draws = [generator(0, 0, "restarts", batch=i) for i in range(n)]
    found = attacks.pgd(FirstPixel(), x, y, eps=eps, step_size=0.0, steps=1, restarts=restarts, generator=draws)
    assert torch.equal(found[:, 0, 0, 0], torch.stack(expected))
    assert 0 < (found[:, 0, 0, 0] > 0.5).sum() < n


def test_misclassified_examples_are_not_attacked_again():
    model = Recorder()
    x = torch.full((4, 1, 2, 2), 0.45)
    x[:2] = 0.9
    attacks.pgd(model, x, torch.zeros(4, dtype=torch.long), eps=0.01, step_size=0.0, steps=1, restarts=3)
    assert [len(seen) for seen in model.seen] == [4, 4, 2, 2, 2, 2]


def test_more_restarts_and_steps_leave_less(trained, batch):
    x, y = batch

    def misclassified(**options):
        x_adv = attacks.pgd(trained, x, y, eps=8 / 255, step_size=2 / 255, generator=seeded(), **options)
        with torch.no_grad():
            return int((trained(x_adv).argmax(1) != y).sum())

    assert misclassified(steps=1) < misclassified(steps=10) <= misclassified(steps=10, restarts=3)


def test_eot_averages_the_gradient_over_forward_passes():
    class Noisy(FirstPixel):
        passes = 0

        def forward(self, x):
            self.passes += 1
            # The wrong sign at every third pass: a majority of three decides right.
            return super().forward(x) * (1 if self.passes % 3 else -1)

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.long)
    model = Noisy()
    x_adv = attacks.pgd(model, x, y, eps=0.2, step_size=0.02, steps=4, eot=3, random_start=False)
    assert model.passes == 12
    assert x_adv.item() == pytest.approx(0.58)


def test_the_kl_attack_computes_clean_logits_once():
    model = Recorder()
    x = torch.full((2, 1, 2, 2), 0.45)
    attacks.pgd(model, x, torch.zeros(2, dtype=torch.long), eps=0.05, step_size=0.01, steps=7, loss="kl")
    assert len(model.seen) == 8 and torch.equal(model.seen[0], x[:, 0, 0, 0])


def test_a_gradient_that_is_nan_is_an_error_and_not_a_direction():
    class Broken(FirstPixel):
        def forward(self, x):
            return super().forward(x) * torch.where(x[:, :1, 0, 0] > 0.4, torch.nan, 1.0)

    x = torch.tensor([0.1, 0.45, 0.2])[:, None, None, None]
    for attack in (attacks.fgsm, attacks.bim, attacks.pgd):
        options = {} if attack is attacks.fgsm else {"step_size": 0.01, "steps": 2}
        with pytest.raises(MoatError, match=r"gradient is not a number for 1 of 3 examples"):
            attack(Broken(), x, torch.zeros(3, dtype=torch.long), eps=0.02, **options)


def test_a_cut_graph_counts_as_a_zero_gradient(trained, batch):
    class Cut(nn.Module):
        def forward(self, x):
            return trained(x.detach().round())

    assert torch.equal(attacks.fgsm(Cut(), *batch, eps=0.1), batch[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 8}, ["eps", "8", "0 to 1", "8/255"]),
        ({"eps": -0.1}, ["eps", "-0.1"]),
        ({"eps": float("nan")}, ["eps", "nan"]),
        ({"eps": "8/255"}, ["eps", "'8/255'"]),
        ({"step_size": 2}, ["step_size", "2"]),
        ({"steps": 0}, ["steps", "0", "from 1"]),
        ({"steps": 2.5}, ["steps", "2.5"]),
        ({"restarts": 0}, ["restarts", "0"]),
        ({"eot": -1}, ["eot", "-1"]),
        ({"loss": "hinge"}, ["loss", "'hinge'", "'ce'", "'margin'", "'kl'"]),
        ({"random_start": "gauss"}, ["random_start", "'gauss'", "'uniform'", "'normal'"]),
        ({"loss": "kl", "random_start": False}, ["random_start", "'kl'"]),
    ],
)
def test_refused_parameters(options, words, trained, batch):
    with pytest.raises(ConfigError) as caught:
        attacks.pgd(trained, *batch, **{"eps": 0.03, "step_size": 0.01, "steps": 2, **options})
    assert all(word in str(caught.value) for word in words)


def test_an_attack_inside_a_training_step_leaves_the_update_unchanged(trained, batch):
    """Under autocast too, where casts of weights are cached: the weights' gradients must not be lost."""
    import copy

    x, y = batch

    def gradients(attacked):
        model = copy.deepcopy(trained).train()
        with torch.autocast("cpu", torch.bfloat16):
            if attacked:
                attacks.pgd(model, x, y, eps=0.03, step_size=0.01, steps=2, generator=seeded())
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_frozen_shared_and_nested(trained):
    trained.train()
    with frozen(trained):
        with frozen(trained):
            assert not trained.training
        assert not trained.training and not any(parameter.requires_grad for parameter in trained.parameters())
    assert trained.training and all(parameter.requires_grad for parameter in trained.parameters())
    trained.eval()

"""Adversarial attacks: procedures that look for a misclassified image near a given one.

An attack is a function ``(model, x, y, *, parameters…) -> x_adv``: a model from images to logits, images float in
[0,1] (B, C, H, W), labels int64 (B,); the result has x's shape and memory format and lies within the ball and [0,1].
The model is left with the modes, the ``requires_grad`` and the gradients it had. Whatever an attack returns, who
measures with it projects it to the ball and classifies it again (:func:`moat.evaluation.evaluate`).

PGD with ten steps, three random starts, on the margin of the logits, with numbers that can be drawn again:

>>> import torch
>>> from moat import attacks, models
>>> model = models.build("lenet5", 10, image_size=16).eval()
>>> x, y = torch.rand(4, 3, 16, 16), torch.tensor([3, 1, 4, 1])
>>> x_adv = attacks.pgd(
...     model, x, y, eps=8 / 255, step_size=2 / 255, steps=10, restarts=3, loss="margin",
...     generator=torch.Generator().manual_seed(0),
... )
>>> bool((x_adv - x).abs().max() <= 8 / 255 + 1e-6)
True

AutoAttack on the fast copy that :func:`for_attack` makes of a model (here with a fraction of its usual work):

>>> x_adv = attacks.autoattack(attacks.for_attack(model), x, y, eps=8 / 255, n_iter=5, n_targets=1, n_queries=10)

An attack of one's own, from the same parts: twenty signed steps from x itself on the logit of class 0, in a ball that
is twice as large for the second half of the batch:

>>> from moat.attacks.parts.steps import ascend, ball, frozen
>>> radius = torch.tensor([0.02, 0.02, 0.04, 0.04]).view(-1, 1, 1, 1)
>>> with frozen(model):
...     x_adv = ascend(model, x, lambda logits: logits[:, 0], ball(x, radius), step_size=0.004, steps=20)

What gradient attacks are composed of (``moat.attacks.parts``):

=============  ====================================================================================================
loss           objectives.py: ``cross_entropy``, ``margin``, ``target_margin``, ``divergence`` (KL to clean logits)
start          steps.py: ``random_start_point`` (uniform in the ball, normal as TRADES has it), or the image itself
steps          steps.py: ``ascend``, the one loop: signed steps, projected; gradients over several passes (``eot``)
projection     steps.py: ``ball``; spaces.py: the bounds of normalised spaces, which flawed protocols work in
repetition     cascade.py: ``with_restarts`` (worst of several starts), ``run_cascade`` (several attacks in turn)
what is seen   views.py: a mixture's substitutes; low precision and speed are :mod:`moat.kernels`' business
=============  ====================================================================================================

Of these, as loss x start x steps:

================  ==========================================================================
fgsm              cross-entropy x the image x one step of eps
bim               cross-entropy x the image x several steps
pgd               any loss x any start x several steps, with restarts and ``eot``
cw_inf            bounded margin x random start x several steps
pgd_targeted      target margin x random start x several steps, class after class
moe_adaptive      pgd against every view of a mixture, and after its route was flipped
================  ==========================================================================

``cw_l2`` minimizes a distance with Adam, ``square`` searches at random, ``autoattack`` runs the four attacks of the
package of that name in turn, ``none`` and ``corruption`` attack nothing. Early-stopped PGD, which some trainings are
made of, is in parts/early_stopped.py.

To add an attack: one file, here or in a project's ``plugins/attacks/``. Its name is the attack's, and so is its
function's. A literal ``PARAMETERS`` says what each keyword may be (:func:`moat.attacks.parts.arguments.attack`), and an
optional ``PASSES`` how many passes through the net one image costs, for plans. ``config/attacks.yaml`` then names its
settings.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from moat.attacks.parts.setting import Attack, bind
from moat.base import plugins
from moat.base.errors import ConfigError, unknown_name
from moat.kernels import AttackCopy, for_attack

__all__ = ["Attack", "AttackCopy", "for_attack", "get", "names", "resolve"]

__path__ = plugins.SearchPath("attacks")


def names() -> list[str]:
    """The attack families, sorted; a project's own among them."""
    return sorted(plugins.attack_families())


def get(name: str) -> Callable[..., torch.Tensor]:
    """A family's function, ``(model, x, y, *, parameters…) -> x_adv``.

    Raises:
        ConfigError: unknown ``name``.
    """
    return getattr(_module(name), name)


def resolve(name: str, setting: Mapping[str, Any]) -> Attack:
    """The attack of a setting as written in ``config/attacks.yaml``: ``{attack: pgd, eps: "8/255", steps: 10, …}``.

    Raises:
        ConfigError: unknown attack, unknown or missing parameter, or a value that is not allowed; names the
            setting, the key and what is allowed.
    """
    where = f"attack setting {name!r}"
    if "attack" not in setting:
        raise ConfigError(f"{where}: the key 'attack' is missing; allowed: {', '.join(names())}")
    try:
        module = _module(setting["attack"])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return bind(setting["attack"], module, setting, where)


def _module(name: str) -> ModuleType:
    if name not in names():
        raise ConfigError(unknown_name(name, names(), what="attack"))
    module = importlib.import_module(f"moat.attacks.{name}")
    # The import has set the package's attribute to the module: here, a family's name means its function.
    globals()[name] = getattr(module, name)
    return module


# A project's own are imported when they are asked for.
for _name, _path in plugins.attack_families().items():
    if _path.is_relative_to(Path(__file__).parent):
        get(_name)

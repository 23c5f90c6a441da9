"""moat: reproduces papers on adversarially robust mixture-of-experts image classifiers.

Importing the package is quick: what is listed below is loaded on first use, and torch with it.

    import moat

    model = moat.load("results/quickstart/runs/digits/resnet18/trades/seed0")
    x_adv = moat.attacks.pgd(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10)
    rows = moat.evaluate(model, x, y, {"pgd10": {"attack": "pgd", "eps": "8/255", "step_size": "2/255", "steps": 10}},
                         batch_size=250)
    print(moat.verify(model, x, y, eps=8 / 255))

- ``moat.models``: nets and mixtures of experts, built by name
- ``moat.attacks``: attacks, and the fast copy of a model for any attack library (``for_attack``)
- ``moat.methods``: training methods and their losses
- ``moat.data``: datasets and corruptions
- ``moat.evaluation``: evaluation, statistics and the checks
- ``moat.evaluate``, ``moat.verify``: attack a model; check that its robust accuracy can be trusted
- ``moat.load``: the model of a finished run
"""

import importlib

__version__ = "0.1.0"

# Public name -> (module, attribute); None for the module itself.
_HOMES = {
    "attacks": ("attacks", None),
    "data": ("data", None),
    "evaluate": ("evaluation", "evaluate"),
    "evaluation": ("evaluation", None),
    "load": ("training.models", "load_model"),
    "methods": ("methods", None),
    "models": ("models", None),
    "verify": ("evaluation", "verify"),
}

__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    home = importlib.import_module(f"{__name__}.{module}")
    return home if attribute is None else getattr(home, attribute)


def __dir__() -> list[str]:
    return sorted({"__doc__", "__version__", *_HOMES})

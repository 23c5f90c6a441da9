"""How images/s grow with the batch size and with the number of experts, as curves.

    python benchmarks/scaling.py [--curves batch,experts]

Batch size: PGD-10 in float32 on a dense net. Experts: ADVMoE's attack at constant total width, routed, and with every
expert computed and masked; routing must not become slower with more experts.
"""

import sys
from typing import Any

import moe
from benchlib import command, peers, timing, updates
from moat.attacks import for_attack, pgd
from moat.base.errors import ConfigError, unknown_name

COLUMNS = ("curve", "case", "points")


def add_arguments(parser) -> None:
    parser.add_argument("--curves", default="batch,experts", metavar="A,B", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=16, metavar="N", help="channels of the first stage (default: 16)")
    parser.add_argument("--sizes", default="1,4,16,64,256", metavar="N,N", help="batches (default: %(default)s)")
    parser.add_argument("--experts", default="2,4,8", metavar="N,N", help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="of the curve over experts (default: 64)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed rounds (default: 5)")


def measure(arguments) -> list[dict[str, Any]]:
    """A row per curve and contender, with its ``points``."""
    rows = []
    for name in arguments.curves.split(","):
        if name not in _CURVES:
            raise ConfigError("--curves: " + unknown_name(name, _CURVES, what="curve"))
        print(f"scaling: {name}", file=sys.stderr)
        rows += _CURVES[name](arguments)
    return [{**row, "precision": "float32", "width": arguments.width} for row in rows]


def _over_batches(arguments) -> list[dict[str, Any]]:
    model = for_attack(updates.resnet18(arguments.width))
    settings = {"eps": peers.EPS, "step_size": peers.STEP_SIZE, "steps": peers.STEPS}
    sizes = [int(size) for size in arguments.sizes.split(",")]

    def attack(size: int):
        x, y = updates.batch(size)
        x = updates.channels_last(x)
        return lambda: pgd(model, x, y, **settings)

    calls = {str(size): attack(size) for size in sizes}
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    points = [_point(size, size, taken[str(size)]) for size in sizes]
    return [{"curve": "batch", "case": "PGD-10", "points": points}]


def _over_experts(arguments) -> list[dict[str, Any]]:
    recipe = updates.recipe_of(arguments.project, "advmoe")
    counts = [int(count) for count in arguments.experts.split(",")]
    calls = {}
    for count in counts:
        of_count, _ = moe.attack_calls(arguments.width, count, arguments.batch_size, recipe, 1 / count)
        calls |= {f"{name} {count}": call for name, call in of_count.items()}
    taken = timing.cpu_seconds(calls, repeats=arguments.repeats)
    return [
        {
            "curve": "experts",
            "case": name,
            "points": [_point(count, arguments.batch_size, taken[f"{name} {count}"]) for count in counts],
        }
        for name in ("routed", "masked")
    ]


def _point(x: int, images: int, seconds: list[float]) -> dict[str, float]:
    """Images/s: the median and the range of the repeats."""
    rates = timing.summary([images / each for each in seconds])
    return {
        "x": x,
        "y": round(rates["median"], 2),
        **{key: round(rates[key], 2) for key in ("low", "high")},
        "n": rates["n"],
    }


_CURVES = {"batch": _over_batches, "experts": _over_experts}

if __name__ == "__main__":
    sys.exit(command.main(sys.modules[__name__]))

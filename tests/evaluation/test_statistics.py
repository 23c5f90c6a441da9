"""Intervals, worst cases and verdicts against known numbers."""

import itertools
import math
import subprocess
import sys

import pandas as pd
import pytest

from moat.base.errors import DataError
from moat.evaluation.statistics import accuracy, verdict, wilson


def by_formula(correct, n, z=1.959963984540054):
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("correct", "n"), [(5000, 10000), (1, 7), (47, 100), (999, 1000)])
def test_wilson_is_the_formula(correct, n):
    assert wilson(correct, n) == pytest.approx(by_formula(correct, n), abs=1e-12)


def test_wilson_known_values():
    assert wilson(50, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0, 0.277533), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.722467, 1), abs=1e-6)
    low, high = wilson(50, 100, confidence=0.99)
    assert low < 0.4038 and high > 0.5962


@pytest.mark.parametrize(("correct", "n", "confidence"), [(-1, 10, 0.95), (11, 10, 0.95), (0, 0, 0.95), (1, 2, 95)])
def test_wilson_refuses(correct, n, confidence):
    with pytest.raises(ValueError, match="allowed"):
        wilson(correct, n, confidence)


def rows(**settings):
    return pd.DataFrame(
        [
            {"setting": name, "index": index, "correct": bool(value)}
            for name, values in settings.items()
            for index, value in enumerate(values)
        ]
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(["a"], (3, 4)), (["b"], (3, 4)), (["a", "b"], (2, 4)), (["a", "b", "c"], (1, 4)), (["c", "a"], (2, 4))],
)
@pytest.mark.parametrize("categorical", [False, True])
def test_worst_case_per_example(settings, expected, categorical):
    frame = rows(a=[1, 1, 0, 1], b=[1, 0, 1, 1], c=[1, 1, 1, 0]).sample(frac=1, random_state=1)
    if categorical:
        frame["setting"] = frame["setting"].astype("category")
    assert accuracy(frame, settings) == expected


@pytest.mark.parametrize(
    ("frame", "settings", "words"),
    [
        (rows(a=[1]), [], ["no attack setting"]),
        (rows(a=[1], b=[0]), ["a", "pgd"], ["'pgd'", "a, b"]),
        (rows(a=[1, 1], b=[1]), ["a", "b"], ["'a'", "'b'", "different examples"]),
        (rows(a=[1, 1], b=[1, 1]).assign(index=[0, 1, 1, 2]), ["a", "b"], ["different examples"]),
        (rows(a=[1, 1]).assign(index=0), ["a"], ["'a'", "twice"]),
    ],
)
def test_accuracy_refuses(frame, settings, words):
    with pytest.raises(DataError) as caught:
        accuracy(frame, settings)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (49, 51, "reproduced"),
        (48, 52, "reproduced"),
        (51.5, 52.5, "unverified"),
        (52.1, 53, "above"),
        (40, 47.9, "below"),
        (47, 49, "unverified"),
        (40, 60, "unverified"),
    ],
)
def test_verdict_by_equivalence(low, high, expected):
    assert verdict(50, low, high, (low + high) / 2, 2) == expected


def test_every_verdict_is_one_of_four_and_none_contradicts_the_measurement():
    for low, width, tolerance in itertools.product(range(0, 100, 7), (0, 1, 5, 20), (0, 2)):
        measured = low + width / 2
        found = verdict(50, low, low + width, measured, tolerance)
        assert found in {"reproduced", "above", "below", "unverified"}
        assert (found != "above" or measured > 50) and (found != "below" or measured < 50)


@pytest.mark.parametrize(("low", "high", "measured", "tolerance"), [(51, 52, 50, 2), (49, 51, 50, -1), (52, 51, 51, 1)])
def test_verdict_refuses(low, high, measured, tolerance):
    with pytest.raises(ValueError, match="allowed"):
        verdict(50, low, high, measured, tolerance)


def test_statistics_need_no_torch():
    code = "import sys; from moat.evaluation.statistics import wilson; wilson(1, 2); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

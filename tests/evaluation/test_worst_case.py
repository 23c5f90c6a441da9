"""Attacks in stages and worst cases: who is attacked, what is kept, and that skipping changes no verdict."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from double import InDouble
from journals import MARK, lose, shards
from torch import nn

from moat.attacks.parts.flags import flag
from moat.attacks.parts.setting import Attack
from moat.base.errors import ConfigError
from moat.commands.cli import main
from moat.config.project import Project
from moat.evaluation import evaluate
from moat.evaluation.measurement import SHARD, Measurement
from moat.evaluation.plan import make_plan
from moat.evaluation.records import evaluate_by_setting, summarize
from moat.evaluation.robustbench import entry
from moat.evaluation.statistics import accuracy
from moat.provenance import staleness
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
CLEAN = {"attack": "none"}
FGSM = {"attack": "fgsm", "eps": "4/255"}
PGD = {"attack": "pgd", "eps": "4/255", "step_size": "1/255", "steps": 4}
SQUARE = {"attack": "square", "eps": "4/255", "n_queries": 8}
AA = {"attack": "autoattack", "eps": "4/255", "n_iter": 3, "n_targets": 1, "n_queries": 3, "batch_size": 32}
MEMBERS = {"clean": CLEAN, "fgsm": FGSM, "pgd": PGD, "square": SQUARE}


def in_journal(folder):
    return {"journal": folder / "journal", "identity": {}}


def counting(function, eps=4 / 255):
    """An attack that notes how many examples it was given."""
    sizes = []

    def attack(model, x, y):
        sizes.append(len(x))
        return function(x)

    return Attack(attack, eps=eps, steps=1, takes_generator=False), sizes


@pytest.mark.brief(keep=lambda case: case["measured"] == ["clean", "pgd"])
@pytest.mark.parametrize("measured", [["clean"], ["clean", "pgd"], list(MEMBERS)])
def test_skipping_changes_no_verdict(measured, undefended, test_images):
    x, y = test_images
    # In float64: the examples that are left come in other batches.
    model = InDouble(undefended)
    every = evaluate(model, x, y, MEMBERS, batch_size=50)
    some = {name: MEMBERS[name] for name in measured}
    rows = evaluate(model, x, y, some, batch_size=50, worst_case={"worst": MEMBERS})
    assert rows["setting"].unique().tolist() == [*measured, "worst"]
    worst = rows[rows["setting"] == "worst"]
    assert accuracy(worst, ["worst"]) == accuracy(every, list(MEMBERS))
    survives = every.groupby("index")["correct"].all()
    assert worst.set_index("index")["correct"].tolist() == survives.tolist() and 0 < survives.sum() < len(x)
    # Each misclassified example is credited to a setting that succeeded, with that setting's row.
    by_setting = every.set_index(["setting", "index"])
    for _, row in worst[~worst["correct"]].iterrows():
        credited = by_setting.loc[(row["misclassified_by"], row["index"])]
        assert not credited["correct"] and credited["predicted"] == row["predicted"]
    assert worst["misclassified_by"].isna().tolist() == worst["correct"].tolist()


def test_only_what_is_left_is_attacked(undefended, test_images):
    x, y = test_images
    half = blackening(60)
    spy, sizes = counting(lambda x: x)
    alone = evaluate(undefended, x, y, {"clean": CLEAN}, batch_size=500)["correct"].to_numpy()
    evaluate(undefended, x, y, {"clean": CLEAN}, batch_size=500, worst_case={"worst": {"half": half, "spy": spy}})
    assert sizes[0] < alone.sum()
    fixed, sizes = counting(lambda x: x)
    together = replace(fixed, batch_size=100)
    evaluate(undefended, x, y, {"clean": CLEAN}, batch_size=500, worst_case={"worst": {"half": half, "aa": together}})
    # Its random numbers depend on who is there: it gets them all, in batches of its own size.
    assert sizes == [100, 20]


def blackening(count):
    """Turns the first images of a batch black."""

    def attack(model, x, y):
        x[:count] = 0
        return x

    return Attack(attack, eps=None, steps=1, takes_generator=False)


def test_a_worst_case_ends_where_its_shortest_setting_does(undefended, test_images):
    x, y = test_images
    members = {"clean": CLEAN, "fgsm": {**FGSM, "limit": 70}, "pgd": {**PGD, "limit": 90}}
    rows = evaluate(undefended, x, y, members, batch_size=50, worst_case={"worst": members}, indices=range(5, 125))
    assert rows.groupby("setting", sort=False).size().to_dict() == {"clean": 120, "fgsm": 70, "pgd": 90, "worst": 70}
    assert rows[rows["setting"] == "worst"]["index"].tolist() == list(range(5, 75))
    assert summarize(rows, ["fgsm"])["fgsm"]["n"] == 70


def test_stages_see_what_is_left_and_are_kept_one_by_one(undefended, test_images, tmp_path):
    """Two runs over the same parts: the second measures nothing; a lost part is measured again, to the same rows."""
    from moat.attacks import resolve

    x, y = test_images
    settings = {"aa": resolve("aa", AA)}

    def run():
        return next(evaluate_by_setting(undefended, x, y, settings, batch_size=50, **in_journal(tmp_path)))

    first = run()
    sizes = [len(rows) for rows in shards(tmp_path / "journal")]
    misclassified = first.rows["misclassified_by"].value_counts()
    assert 2 <= len(sizes) <= 5 and sizes[:2] == [120, 120 - misclassified.get("clean", 0)]
    again = run()
    assert (
        again.measured_before
        and not first.measured_before
        and again.seconds == first.seconds
        and again.flags == first.flags
    )
    pd.testing.assert_frame_equal(again.rows, first.rows)
    lose(tmp_path / "journal", 1)
    third = run()
    assert not third.measured_before
    pd.testing.assert_frame_equal(third.rows, first.rows)


@pytest.mark.long
def test_a_part_with_a_wrong_byte_is_measured_again(undefended, test_images, tmp_path):
    """Arrow itself reads on over many of them, over some to other rows."""
    from moat.attacks import resolve

    x, y = test_images
    settings = {"fgsm": resolve("fgsm", FGSM)}

    def run():
        return next(evaluate_by_setting(undefended, x, y, settings, batch_size=120, **in_journal(tmp_path)))

    first, path = run(), tmp_path / "journal"
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 25):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        again = run()
        assert not again.measured_before, position
        pd.testing.assert_frame_equal(again.rows, first.rows)
        assert run().measured_before


def test_long_settings_are_kept_in_shards(test_images, tmp_path):
    from moat.models import nets

    torch.manual_seed(0)
    model = nets.build("lenet5", 10, width=0.5, image_size=16).eval()
    x = test_images[0][:1].expand(2 * SHARD + 1, -1, -1, -1)
    y = torch.zeros(len(x), dtype=torch.long)
    spy, sizes = counting(lambda x: x)
    once = dict(batch_size=300, **in_journal(tmp_path))
    (first,) = evaluate_by_setting(model, x, y, {"spy": spy}, **once)
    assert [len(rows) for rows in shards(tmp_path / "journal")] == [900, 900, 201]
    assert sizes == [300, 300, 300, 300, 300, 300, 201] and first.rows["index"].tolist() == list(range(len(x)))
    lose(tmp_path / "journal", 1)
    (again,) = evaluate_by_setting(model, x, y, {"spy": spy}, **once)
    assert sizes[7:] == [300, 300, 300] and not again.measured_before
    pd.testing.assert_frame_equal(again.rows, first.rows)


def test_flags_are_collected_by_setting_and_survive_a_restart(undefended, test_images, tmp_path, caplog):
    def noisy(model, x, y):
        flag("odd", "something is odd")
        return x

    x, y = test_images
    settings = {"noisy": Attack(noisy, eps=0.1, steps=1, takes_generator=False), "quiet": counting(lambda x: x)[0]}
    for _ in range(2):
        found = list(evaluate_by_setting(undefended, x, y, settings, batch_size=50, **in_journal(tmp_path)))
        assert [each.flags for each in found] == [{"odd": "something is odd"}, {}]
    assert "odd" not in caplog.text


def test_memory_that_does_not_suffice_for_a_fixed_batch_is_a_flag(undefended, test_images, caplog):
    def hungry(model, x, y):
        if len(x) > 30:
            raise torch.OutOfMemoryError("too much")
        return x

    x, y = test_images
    attack = Attack(hungry, eps=0.1, steps=1, takes_generator=False, batch_size=40)
    measurement = Measurement(undefended, x, y, range(len(x)), 100)
    assert len(measurement.setting("fixed", attack)) == 120
    assert list(measurement.flags["fixed"]) == ["batch-size"] and measurement.batch_size == 100


# -- what applies to a model ---------------------------------------------------


class Routed(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.router = net, nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3, 2))

    def route_logits(self, x):
        return self.router(x)

    def forward(self, x):
        return self.net(x) * self.router(x).softmax(1).amax(1, keepdim=True)


TRUST_ROUTER = ["pgd10_det", "aa_det", "moe_adaptive"]


def test_what_does_not_apply_is_listed_with_its_reason(undefended):
    project = Project(ROOT)
    suite = ("trust", project.attack_settings("trust"), project.worst_cases("trust"))
    plain = make_plan(*suite, undefended, {})
    assert set(plain.not_applicable) == set(TRUST_ROUTER)
    assert all("router" in plain.not_applicable[name] for name in TRUST_ROUTER)
    transfer = make_plan("transfer", project.attack_settings("transfer"), {}, undefended, {})
    assert set(transfer.not_applicable) == {"transfer_seed", "transfer_arch"}
    assert "'seed'" in transfer.not_applicable["transfer_seed"]
    assert set(plain.worst_cases["worst"]).isdisjoint(plain.not_applicable)
    routed = make_plan(*suite, Routed(undefended), {})
    assert not routed.not_applicable
    assert {"pgd10_det", "aa_det", "moe_adaptive"} <= set(routed.settings) & set(routed.worst_cases["worst"])
    assert set(plain.record) == set(routed.record) > set(plain.settings)


@pytest.mark.parametrize("suite", ["dramoe", "dwf", "advmoe"])
def test_a_net_without_a_router_is_attacked_with_one_gradient_only(undefended, suite):
    settings = Project(ROOT).attack_settings(suite)
    detached = {name for name in settings if name.endswith("_det")}
    plain, routed = (make_plan(suite, settings, {}, model, {}) for model in (undefended, Routed(undefended)))
    assert detached and detached <= set(plain.not_applicable)
    assert set(routed.settings) == set(settings)


def test_a_setting_that_does_not_apply_is_refused_by_name(undefended, test_images):
    setting = {**PGD, "view": "detached"}
    with pytest.raises(ConfigError, match="'det' does not apply: the model has no view 'detached'"):
        evaluate(undefended, *test_images, {"det": setting}, batch_size=50)


def test_a_view_is_attacked_and_the_model_is_scored(undefended, test_images):
    x, y = test_images
    model = Routed(undefended).eval()
    rows = evaluate(model, x, y, {"det": {**PGD, "view": "detached"}, "st": PGD}, batch_size=120)
    from moat.attacks import pgd
    from moat.data.seeding import generator
    from moat.models.moe import detached_router

    draws = [generator(0, 0, "evaluate det", batch=i) for i in range(120)]
    x_adv = pgd(detached_router(model), x, y, eps=4 / 255, step_size=1 / 255, steps=4, generator=draws)
    with torch.no_grad():
        predicted = model(x_adv).argmax(1)
    assert (rows[rows["setting"] == "det"]["predicted"].to_numpy() == predicted.numpy()).mean() > 0.98


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({**PGD, "requires": "gate"}, ["requires", "'gate'", "'router', 'experts'"]),
        ({**PGD, "limit": 0}, ["limit", "0", "from 1"]),
        ({**PGD, "view": "soft", "transfer_from": "seed"}, ["view", "transfer_from"]),
    ],
)
def test_wrong_keys_about_what_is_attacked(setting, words, undefended, test_images):
    with pytest.raises(ConfigError) as caught:
        evaluate(undefended, *test_images, {"mine": setting}, batch_size=50)
    assert "'mine'" in str(caught.value) and all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("override", "words"),
    [({"ab": {"limit": 3}}, ["attacks", "'ab'", "aa"]), ({"aa": {"limitt": 3}}, ["aa", "'limitt'", "tiny"])],
)
def test_a_scales_changes_are_checked(override, words, tmp_path):
    copy_project(tmp_path)
    scale = yaml.safe_load((ROOT / "config/scales/mini.yaml").read_text())
    (tmp_path / "config/scales/tiny.yaml").write_text(yaml.safe_dump({**scale, "attacks": override}))
    with pytest.raises(ConfigError) as caught:
        Project(tmp_path).attack_settings("trust", "tiny")
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_a_scale_says_what_it_reduces(scale):
    settings = Project(ROOT).attack_settings("trust", scale)
    assert settings["aa"].get("limit") == {"smoke": 8, "mini": 64, "paper": None}[scale]
    assert (settings["aa"].get("n_queries", 5000) == 5000) == (scale == "paper")


# -- RobustBench ---------------------------------------------------------------


def evaluation(**changes):
    def row(accuracy, n):
        return {"accuracy": accuracy, "n": n}

    return {
        "suite": "trust",
        "settings": {
            "clean": CLEAN,
            "aa": {"attack": "autoattack", "eps": 8 / 255, "n_iter": 100, "n_targets": 9, "n_queries": 5000},
            "aa_det": {"attack": "autoattack", "eps": 8 / 255, "n_queries": 500, "view": "detached"},
        },
        "accuracy": {"clean": row(0.8, 1000), "aa": row(0.45, 500), "aa_det": row(0.4012, 500), "worst": row(0.4, 500)},
        "worst_case": {"worst": {}},
        "flags": {},
        "run": {"dataset": "cifar10", "arch": "resnet18", "method": "advmoe", "scale": "mini"},
        **changes,
    }


def test_the_robustbench_entry_has_its_keys_and_the_worst_numbers():
    made = entry(evaluation(), {"title": "ADVMoE"})
    theirs = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported"
    assert set(theirs.split()) | {"autoattack_acc", "footnote", "unreliable", "external"} <= set(made)
    assert (made["clean_acc"], made["autoattack_acc"], made["external"]) == ("80.00", "40.12", "40.00")
    assert (made["eps"], made["name"], made["unreliable"]) == ("8/255", "ADVMoE", False)
    for words in ("n_queries 500", "on 500 images (a subset)", "'detached'", "scale mini"):
        assert words in made["footnote"]


def test_a_flag_makes_the_entry_unreliable_and_no_autoattack_makes_none():
    made = entry(evaluation(flags={"aa": {"randomized": "it moves"}}), {})
    assert made["unreliable"] and "aa flag randomized: it moves" in made["footnote"]
    with pytest.raises(ConfigError, match="AutoAttack"):
        entry(evaluation(accuracy={"clean": {"accuracy": 0.8, "n": 10}}), {})


# -- the command ---------------------------------------------------------------


def test_a_killed_autoattack_goes_on_with_the_attack_it_was_in(project, tmp_path, monkeypatch):
    """SIGKILL while a later attack of AutoAttack runs: what was finished is kept, and the rows are the same."""
    monkeypatch.chdir(project)
    out, journal = tmp_path / "aa.parquet", tmp_path / "work" / "aa.journal"
    command = [sys.executable, "-m", "moat", "evaluate", "--run", "run", "--suite", "small_aa", "--scale", "tiny"]
    command += ["--out", str(out), "--journal", str(journal)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        while process.poll() is None and len(shards(journal)) < 2:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        code = process.wait(60)
    assert code == -signal.SIGKILL and not out.exists()
    kept = journal.read_bytes()
    assert main(command[3:]) == 0
    # What the kill cut short is dropped in the end.
    assert journal.read_bytes().startswith(kept[: kept.rfind(MARK)])
    other = tmp_path / "other" / "aa.parquet"
    assert main([*command[3 : command.index("--out")], "--out", str(other), "--journal", str(tmp_path / "fresh")]) == 0
    assert out.read_bytes() == other.read_bytes()


def test_the_json_says_what_was_attacked_how(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    out, card = tmp_path / "small_trust.parquet", tmp_path / "robustbench.json"
    options = ["--suite", "small_trust", "--scale", "tiny", "--journal", str(tmp_path / "journal"), "--limit", "20"]
    assert main(["evaluate", "--run", "run", *options, "--out", str(out), "--transfer-from", "run",
                 "--robustbench", str(card)]) == 0  # fmt: skip
    content, rows = json.loads(out.with_suffix(".json").read_text()), pd.read_parquet(out)
    assert content["not_applicable"].keys() == {"pgd10_det", "transfer_arch"}
    assert "pgd10_det: not applicable, the model has no router" in capsys.readouterr().out
    assert content["settings"]["aa"]["n_queries"] == 3 and content["settings"]["aa"]["limit"] == 12
    assert content["settings"]["transfer_seed"]["source"]["model_sha256"] == content["run"]["model_sha256"]
    assert content["accuracy"]["aa"]["n"] == content["accuracy"]["worst"]["n"] == 12 and content["n"] == 20
    misclassified = content["worst_case"]["worst"]
    assert misclassified["of"] == ["clean", "pgd10", "aa", "transfer_seed", "fgsm"]
    left = content["accuracy"]["worst"]["correct"]
    assert sum(misclassified["misclassified_by"].values()) + left == 12 == (rows["setting"] == "worst").sum()
    assert "fgsm" not in rows["setting"].unique()
    assert json.loads(card.read_text())["autoattack_acc"] == f"{100 * content['accuracy']['aa']['accuracy']:.2f}"
    assert staleness.stale(content) == []

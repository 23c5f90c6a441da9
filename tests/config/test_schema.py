"""YAML files: what is wrong is named, with the file, the key and what is allowed."""

from pathlib import Path

import pytest
import yaml

from moat.base.errors import ConfigError
from moat.base.numbers import parse_number
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.config.recipes import digest, merge, resolve_recipe, resolve_run
from moat.config.schema import read_yaml
from project_copy import copy_project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A copy of the project's own configuration, to be spoilt."""
    copy_project(tmp_path)
    return Project(tmp_path)


def edit(project: Project, relative: str, old: str, new: str) -> None:
    path = project.root / relative
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("kind", ["dataset", "method", "scale", "study"])
def test_every_file_of_the_project_is_valid(kind):
    project = Project(ROOT)
    plural = {"study": "studies"}.get(kind, f"{kind}s")
    for name in project.names(plural):
        assert getattr(project, kind)(name), name


def test_config_attacks_and_suites_of_the_project_are_valid():
    project = Project(ROOT)
    assert project.config()["scale"] in project.names("scales")
    assert set(project.config()["studies"]) <= set(project.names("studies"))
    for suite in project.suites():
        assert project.attack_settings(suite)


# The end of a recipe, to be followed by more.
TRADES = ("config/methods/trades.yaml", "forwards: 1, trainings: 2}")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (*TRADES, "\nepoch: 100", ["trades.yaml", "'epoch'", "did you mean 'epochs'"]),
        (*TRADES, "\nepochs: many", ["trades.yaml", "epochs", "'many'", "integer"]),
        ("config/methods/_shared.yaml", "epochs: 100\n", "", ["methods/trades.yaml", "'epochs' is missing"]),
        (
            "config/methods/_shared.yaml",
            "epochs: 100",
            "epochs: 0",
            ["methods/_shared.yaml", "epochs", "(recipe trades)"],
        ),
        (*TRADES, "\nschedule: {name: cosin}", ["schedule.name", "'cosin'", "'cosine'", "step"]),
        ("config/methods/trades.yaml", "steps: 10", "stepz: 10", ["in attack", "'stepz'", "'steps'", "eps"]),
        (*TRADES, "\nepochs: 100\nepochs: 90", ["trades.yaml", "'epochs' stands twice"]),
        (*TRADES, "\nepochs: [1", ["trades.yaml", "not valid YAML"]),
        (*TRADES, "\noptimizer: {lr: -1}", ["optimizer.lr", "-1"]),
        ("config/scales/mini.yaml", "max_seeds: 1", "max_seeds: 0", ["mini.yaml", "max_seeds", "0"]),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else None,
)
def test_a_fault_is_named(project, file, old, new, said):
    edit(project, file, old, new if (file, old) != TRADES else old + new)
    with pytest.raises(ConfigError) as error:
        project.scale("mini") if "scales" in file else project.method("trades")
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("method", "key", "said"),
    [
        # What another class declares is refused, and it is said where this one declares its own.
        ("standard", "attack_space: {name: pixel}", ["unknown key 'attack_space'", "class standard", "PARAMETERS"]),
        ("mocse", "attack_space: {name: normalised_noclip}", ["unknown key 'attack_space'", "keys of class mocse"]),
        ("standard", "attack: {eps: 8/255, step_size: 2/255, steps: 10}", ["unknown key 'attack'", "class standard"]),
        ("pgd-at", "initialize_from: [{name: a, method: standard}]", ["unknown key 'initialize_from'"]),
        (
            "trades",
            "loss: {betta: 6.0}",
            ["in loss: unknown key 'betta' (did you mean 'beta'?)", "trades.py: Trades.P"],
        ),
        ("trades", "loss: {beta: -1}", ["loss.beta", "-1", "weight of the KL", "moat/methods/trades.py: Trades.PARA"]),
        ("trades", "model: {experts: 2}", ["in model: unknown key 'experts'", "allowed: mixture, width"]),
        ("dramoe", "rgat: {tau: []}", ["rgat.tau", "moat/methods/dramoe.py: Dramoe.PARAMETERS"]),
        ("dramoe", "rgat: {lambda_schedule: down}", ["'down'", "cosine_decay, cosine_growth", "dramoe.py: Dramoe.P"]),
        ("dramoe", "attack: {router_grad: none}", ["attack.router_grad", "detached, st", "_moe.py: MoeMethod.PARAM"]),
        ("dramoe", "attack: {steps: 0}", ["attack.steps", "moat/methods/_moe.py: MoeMethod.PARAMETERS"]),
        ("dramoe", "model: {experts: two}", ["model.experts: 'two' has the wrong type", "integer"]),
        ("soe", "phases: [{fraction: 2, attack: ensemble, weights: best}]", ["phases.0.fraction", "soe.py: Soe.PARAM"]),
        ("soe", "phases: [{attack: ensemble, weights: best}]", ["in phases.0: the key 'fraction' is missing"]),
        ("dwf", "model: {mixture: sramoe}", ["in model: unknown key 'mixture'", "moat/models/moe/dwf.py: PARAMETERS"]),
        ("dwf", "model: {experts: 0}", ["model.experts", "moat/models/moe/dwf.py: PARAMETERS"]),
        ("trades", "model: {mixture: so}", ["model.mixture: unknown mixture 'so' (did you mean 'soe'?)", "moe-cnn"]),
        ("trades", "model: {mixture: soe}", ["in model: the key 'experts' is missing", "moe/soe.py: PARAMETERS"]),
        ("trades", "model: {mixture: soe, experts: 2, gate: 3}", ["in model: unknown key 'gate'", "soe.py: PARAM"]),
        ("fgsm-at", "attack_space: pixel", ["attack_space: 'pixel' has the wrong type", "base.py: AdversarialMethod"]),
        (
            "dwf",
            "attack_space: {name: normalized}",
            ["attack_space.name: unknown value 'normalized'", "normalised_clip01, normalised_noclip, normalised_valid"],
        ),
        ("soe", "attack_space: {statistics: model}", ["in attack_space: the key 'name' is missing"]),
        ("mart", "attack_space: {name: pixel, clip: 1}", ["in attack_space: unknown key 'clip'", "name, statistics"]),
        ("fat", "attack_space: {name: pixel, statistics: imagenet}", ["attack_space.statistics", "allowed: model"]),
        (
            "dramoe",
            "attack_space: {name: normalised_noclip, statistics: printed}",
            ["attack_space.statistics", "'printed'", "model"],
        ),
        (
            "hybrid",
            "attack_space: {name: normalised_noclip, statistics: {mean: [0.5]}}",
            ["attack_space.statistics", "std"],
        ),
        (
            "hybrid",
            "attack_space: {name: normalised_noclip, statistics: {mean: [0.5], std: [0]}}",
            ["attack_space.statistics.std.0", "0"],
        ),
    ],
)
def test_a_method_is_told_what_its_class_declares(project, method, key, said):
    """Written into a scale, which is named as the place of the fault."""
    path = project.root / "config/scales/smoke.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["recipes"][method] = {**scale["recipes"].get(method, {}), **yaml.safe_load(key)}
    path.write_text(yaml.safe_dump(scale))
    with pytest.raises(ConfigError) as error:
        resolve_recipe(project, "smoke", method)
    assert f"config/scales/smoke.yaml: recipes.{method}: " in str(error.value)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 10}", "stepz: 10}", r"dwf-expert-fgsm.yaml: in watch: unknown key 'stepz' \(did you mean 'steps'"),
        ("attack: pgd", "attack: pgdd", r"dwf-expert-fgsm.yaml: watch.attack: unknown attack 'pgdd'"),
    ],
)
def test_an_attack_setting_in_a_recipe_is_checked_as_in_attacks_yaml(project, old, new, said):
    edit(project, "config/methods/dwf-expert-fgsm.yaml", old, new)
    with pytest.raises(ConfigError, match=said):
        project.method("dwf-expert-fgsm")


def test_what_a_class_requires_is_asked_for_with_its_place(project):
    edit(project, "config/methods/trades.yaml", "loss: {beta: 6.0}\n", "")
    with pytest.raises(
        ConfigError, match=r"trades.yaml: in the file: the key 'loss' is missing.*trades.py: Trades.PAR"
    ):
        project.method("trades")


def recipe(project: Project, name: str, **content) -> None:
    (project.root / "config" / "methods" / f"{name}.yaml").write_text(yaml.safe_dump(content))


def test_a_variant_says_what_differs(project):
    """Mappings merge key by key, lists and single values are replaced, null takes a topic out."""
    changes = {"loss": {"beta": 1.0}, "rgat": {"tau": [3]}, "deviations": {"tau": None, "beta": "1"}}
    recipe(project, "mine", title="Mine", extends="dramoe-gap", sources={"row": "ours"}, **changes)
    made, base = project.method("mine"), project.method("dramoe-gap")
    assert (made["class"], made["title"]) == ("dramoe", "Mine") and "extends" not in made
    assert made["loss"] == {**base["loss"], "beta": 1.0} and made["rgat"] == {**base["rgat"], "tau": [3]}
    assert made["sources"] == {**base["sources"], "row": "ours"}
    assert made["deviations"].keys() == base["deviations"].keys() - {"tau"} | {"beta"}
    same = {"title", "sources", "deviations", "loss", "rgat"}
    assert {k: v for k, v in made.items() if k not in same} == {k: v for k, v in base.items() if k not in same}


def test_a_recipe_of_another_class_may_extend_one(project):
    assert project.method("mocse-at")["class"] == "mocse-at"
    # Not named, the class is the one of the recipe that is extended, at last the one of that recipe's name.
    assert {project.method(name)["class"] for name in ("mocse-iso", "mocse-augmented", "mocse")} == {"mocse"}


def test_what_a_scale_says_of_a_recipe_holds_for_its_variants(project):
    recipe(project, "mine", title="Mine", extends="dwf")
    assert len(resolve_recipe(project, "smoke", "mine")["initialize_from"]) == 3
    recipe(project, "mine", title="Mine", extends="trades")
    scale = "config/scales/smoke.yaml"
    edit(project, scale, "\nrecipes:\n", "\nrecipes:\n  trades: {gradient_clip: 2.0}\n")
    assert resolve_recipe(project, "smoke", "mine")["gradient_clip"] == 2.0
    edit(project, scale, "\nrecipes:\n", "\nrecipes:\n  mine: {gradient_clip: 1.0}\n")
    assert resolve_recipe(project, "smoke", "mine")["gradient_clip"] == 1.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"title": "Mine", "extends": "dramo"}, "mine.yaml: extends: unknown recipe 'dramo' .did you mean 'dramoe'"),
        ({"title": "Mine", "extends": "mine"}, "mine.yaml: extends: 'mine' extends this recipe in turn"),
        ({"title": "Mine", "extends": "dwf", "class": "dwff"}, "unknown method class 'dwff' .did you mean 'dwf'"),
        ({"title": "Mine", "extends": "_shared"}, "unknown method class 'mine'"),
        ({"extends": "dramoe"}, "mine.yaml: in the file: the key 'title' is missing"),
    ],
)
def test_a_recipe_that_extends_nothing_good_is_refused(project, content, said):
    recipe(project, "mine", **content)
    with pytest.raises(ConfigError, match=said):
        project.method("mine")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown method 'trade'.*did you mean 'trades'.*pgd-at.*config/methods/"):
        Project(ROOT).method("trade")


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no folder config/"):
        Project(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml: no such file"):
        read_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.031", 0.031), (0.03, 0.03), (8, 8.0), (" 2 / 255 ", 2 / 255), ("1e-3", 1e-3)],
)
def test_numbers_as_papers_write_them(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["8/0", "eight", "", "1/2/3", None, True])
def test_what_is_not_a_number_is_refused(text):
    with pytest.raises(ConfigError, match="attack.eps"):
        parse_number(text, where="attack.eps")


def test_merge_goes_key_by_key():
    assert merge({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": 6}) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 6}


def test_scale_overrides_come_in_order(project):
    edit(
        project,
        "config/scales/smoke.yaml",
        "\nrecipes:\n",
        "\nrecipes:\n  trades: {epochs: 7}\n",
    )
    assert resolve_recipe(project, "smoke", "trades")["epochs"] == 7
    assert resolve_recipe(project, "smoke", "pgd-at")["epochs"] == 2
    assert resolve_recipe(project, "paper", "pgd-at")["epochs"] == 100


FROM_0_TO_1 = 'is not allowed; allowed: a distance in pixel units from 0 to 1, e.g. "8/255" or 0.03'


VALUES = ["8", "-0.1", ".nan", '"800/255"', '"1/0"', '"8/255/2"', '"0.5/255"', '"-1/255"', '"8 px"']
PLACES = [
    ("attacks.yaml", 'pgd10: {attack: pgd, eps: "8/255"', "pgd10: {{attack: pgd, eps: {}", "pgd10.eps"),
    ("attacks.yaml", 'step_size: "2/255", steps: 20', "step_size: {}, steps: 20", "pgd20.step_size"),
    ("methods/trades.yaml", "eps: 8/255", "eps: {}", "attack.eps"),
    ("methods/trades.yaml", "step_size: 2/255", "step_size: {}", "attack.step_size"),
    ("methods/dwf.yaml", "fgsm_attack: {eps: [0.01,", "fgsm_attack: {{eps: [{},", "fgsm_attack.eps.0"),
    ("methods/dwf-expert-fgsm.yaml", "watch: {attack: pgd, eps: 8/255", "watch: {{attack: pgd, eps: {}", "watch.eps"),
    ("scales/smoke.yaml", "pgd50_targeted: {", "pgd50_targeted: {{step_size: {}, ", "pgd50_targeted.step_size"),
]


# Every value at the first place, and every place with one value.
@pytest.mark.parametrize(
    ("value", "file", "old", "new", "key"),
    [(value, *PLACES[0]) for value in VALUES] + [("-0.1", *place) for place in PLACES[1:]],
    ids=lambda value: value if value in VALUES or value in {place[-1] for place in PLACES} else "",
)
def test_distances_lie_between_0_and_1_however_they_are_written(project, value, file, old, new, key):
    """In fractions, too; it is said where a plan is made, not by an attack hours later."""
    edit(project, f"config/{file}", old, new.format(value))
    with pytest.raises(ConfigError) as error:
        build_grid(project, "smoke", ["unified"])
        project.attacks()
    assert Path(file).name in str(error.value) and f" {key}: " in str(error.value)
    assert FROM_0_TO_1 in str(error.value)
    assert value.strip('".') in str(error.value)


@pytest.mark.parametrize("value", ["0", "1", '"255/255"', '" 8 / 255"', '"1e-3"'])
def test_distances_that_are_allowed(project, value):
    edit(project, "config/attacks.yaml", 'pgd10: {attack: pgd, eps: "8/255"', f"pgd10: {{attack: pgd, eps: {value}")
    assert project.attacks()["pgd10"]["eps"] is not None


@pytest.mark.parametrize(
    ("recipe", "recipes", "model", "router"),
    [
        ("", "", (0.1, 0.9), (0.1, 0.9)),
        ("optimizer: {lr: 0.05}", "", (0.05, 0.9), (0.05, 0.9)),
        ("optimizer: {lr: 0.05}", "optimizer: {lr: 0.02}", (0.02, 0.9), (0.02, 0.9)),
        ("optimizer: {lr: 0.05}", "optimizer: {momentum: 0.8}", (0.05, 0.8), (0.05, 0.8)),
        ("optimizer: {lr: 0.05}", "router_optimizer: {lr: 0.01}", (0.05, 0.9), (0.01, 0.9)),
        ("optimizer: {lr: 0.05, momentum: 0.8}", "router_optimizer: {lr: 0.01}", (0.05, 0.8), (0.01, 0.9)),
        ("", "router_optimizer: {lr: 0.01}", (0.1, 0.9), (0.01, 0.9)),
    ],
)
def test_a_router_follows_what_a_scale_says_of_the_optimizer(project, recipe, recipes, model, router):
    edit(project, "config/scales/smoke.yaml", "recipe: {", f"recipe: {{{recipe + ', ' if recipe else ''}")
    edit(project, "config/scales/smoke.yaml", "\nrecipes:\n", f"\nrecipes:\n  advmoe: {{{recipes}}}\n")
    resolved = resolve_recipe(project, "smoke", "advmoe")
    assert (resolved["optimizer"]["lr"], resolved["optimizer"]["momentum"]) == model
    assert (resolved["router_optimizer"]["lr"], resolved["router_optimizer"]["momentum"]) == router


@pytest.mark.parametrize(("method", "there"), [("trades", set()), ("pgd-at-sparse", {"mask_optimizer"})])
def test_no_other_method_gets_a_router_or_another_rate_of_its_mask(project, method, there):
    edit(project, "config/scales/smoke.yaml", "recipe: {", "recipe: {optimizer: {lr: 0.05}, ")
    recipe = resolve_recipe(project, "smoke", method)
    assert recipe["optimizer"]["lr"] == 0.05 and recipe.get("mask_optimizer", {}).get("lr", 0.1) == 0.1
    assert {key for key in recipe if key.endswith("_optimizer")} == there


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("augment: randaugment", "augment: unknown value 'randaugment'.*autoaugment, dataset"),
        ("extra_images: {file: a.npz, fraction: 0.5}", "in extra_images: the key 'sha256' is missing"),
        (f"extra_images: {{file: a.npz, fraction: 0.5, sha256: {'A' * 64}}}", "extra_images.sha256.*64 hex digits"),
        (f"extra_images: {{file: a.npz, fraction: 1.0, sha256: {'a' * 64}}}", "extra_images.fraction"),
    ],
)
def test_what_a_recipe_may_say_of_images(project, key, said):
    edit(project, "config/scales/smoke.yaml", "\nrecipes:\n", f"\nrecipes:\n  trades: {{{key}}}\n")
    with pytest.raises(ConfigError, match=said):
        resolve_recipe(project, "smoke", "trades")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  dwf-expert-pgd:", "  trade: {epochs: 9}\n  dwf-expert-pgd:", "smoke.yaml: unknown method 'trade'"),
        ("arch: [resnet18]", "arch: [resnet18], method: [standart]", "smoke.yaml: unknown method 'standart'"),
        ("include: {dataset: [digits]", "include: {dataset: [digit]", "smoke.yaml: unknown dataset 'digit'"),
        ("{cifar10: digits}", "{cifar10: digit}", "smoke.yaml: unknown dataset 'digit'"),
    ],
)
def test_a_scale_with_an_unknown_name_is_refused(project, old, new, said):
    edit(project, "config/scales/smoke.yaml", old, new)
    with pytest.raises(ConfigError, match=said):
        project.scale("smoke")


def scale_file(project, name, **content):
    (project.root / f"config/scales/{name}.yaml").write_text(yaml.safe_dump(content))


def test_a_scale_says_only_what_differs_from_the_one_it_extends(project):
    scale_file(project, "_base", max_attack_steps=3, recipe={"epochs": 9})
    scale_file(
        project, "mine", title="mine", description="d", extends="smoke", recipe={"batch_size": 7}, max_attack_steps=1,
        recipes={"trades": {"epochs": 5}}, last_epoch=False,
    )  # fmt: skip
    scale_file(project, "further", title="further", description="d", extends="mine", data={"train_limit": 90})
    mine, smoke, further = (project.scale(name) for name in ("mine", "smoke", "further"))
    assert mine["recipe"] == {**smoke["recipe"], "batch_size": 7}
    assert mine["data"] == smoke["data"] and further["data"] == {**smoke["data"], "train_limit": 90}
    assert (mine["title"], mine["last_epoch"], further["last_epoch"]) == ("mine", False, False)
    recipes = {method: resolve_recipe(project, "further", method) for method in ("trades", "pgd-at")}
    assert [recipes[name]["epochs"] for name in recipes] == [5, smoke["recipe"]["epochs"]]
    assert {recipe["batch_size"] for recipe in recipes.values()} == {7}
    assert {recipe["attack"]["steps"] for recipe in recipes.values()} == {1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"extends": "smok"}, "mine.yaml: extends: unknown scale 'smok' .did you mean 'smoke'"),
        ({"extends": "mine"}, "mine.yaml: extends: 'mine' extends this scale in turn"),
        ({"extends": "smoke", "description": None}, "mine.yaml: in the file: the key 'description' is missing"),
        ({"extends": "smoke", "modl": {}}, "mine.yaml: in the file: unknown key 'modl'"),
        ({"extends": "_wrong"}, "_wrong.yaml: max_seeds"),
        ({"extends": "smoke", "recipe": {"epochs": 0}}, "mine.yaml: recipe: epochs"),
        ({"extends": "smoke", "exclude": {"item": ["unified-x"]}}, "mine.yaml: exclude: unknown item 'unified-x'"),
        ({"extends": "smoke", "exclude": {"suite": ["trusst"]}}, "exclude: unknown suite 'trusst'.*'trust'"),
    ],
)
def test_a_scale_that_extends_nothing_good_is_refused(project, content, said):
    """It names the file that holds the fault, not the one that was asked for."""
    scale_file(project, "_wrong", extends="smoke", max_seeds=0)
    content = {"title": "mine", "description": "d", **content}
    scale_file(project, "mine", **{key: value for key, value in content.items() if value is not None})
    with pytest.raises(ConfigError, match=said):
        project.scale("mine")
        resolve_recipe(project, "mine", "trades")


def test_an_unknown_validation_attack_is_named(project):
    edit(project, "config/methods/_shared.yaml", "setting: pgd10", "setting: pgd11")
    with pytest.raises(ConfigError, match=r"trades.yaml: validation.setting: unknown attack setting 'pgd11'"):
        resolve_run(project, "smoke", **RUN)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("pgd10_norm", "trades.yaml: validation.setting: 'pgd10_norm' has protocol 'normalised-noclip'"),
        ("transfer_seed", "has transfer_from 'seed', which validation does not know"),
        ("aa_1000", "has limit 1000"),
        ("pgd10_det", "'pgd10_det' requires a mixture's router, and the method trains a single net"),
    ],
)
def test_a_validation_that_would_measure_something_else_is_refused(project, setting, said):
    edit(project, "config/methods/trades.yaml", "title:", f"validation: {{setting: {setting}}}\ntitle:")
    with pytest.raises(ConfigError, match=said):
        resolve_run(project, "smoke", **RUN)


@pytest.mark.parametrize(
    ("space", "setting", "said"),
    [
        ("pixel", "cw_l2", None),
        ("pixel", "aa", None),
        ("normalised_noclip", "clean", None),
        ("normalised_clip01", "pgd10", None),
        ("normalised_valid", "cw_l2", "'cw_l2' is the attack 'cw_l2', which works in pixels only, and attack_space is"),
        ("normalised_noclip", "aa", "allowed there: none, bim, fgsm, pgd"),
    ],
)
def test_a_validation_works_in_the_space_of_the_training(project, space, setting, said):
    written = f"attack_space: {{name: {space}}}\nvalidation: {{setting: {setting}}}\ntitle:"
    edit(project, "config/methods/trades.yaml", "title:", written)
    if said is None:
        assert resolve_run(project, "smoke", **RUN)["recipe"]["attack_space"] == {"name": space}
    else:
        with pytest.raises(ConfigError, match=rf"config/methods/trades.yaml: validation.setting: .*{said}"):
            resolve_run(project, "smoke", **RUN)


@pytest.mark.parametrize(
    ("watch", "said"),
    [
        ("protocol: normalised-noclip", "watch: it has protocol 'normalised-noclip', which validation does not know"),
        ("limit: 5", "watch: it has limit 5"),
        ("view: detached, requires: router", "watch: it requires a mixture's router"),
    ],
)
def test_what_is_watched_is_held_to_the_same_rules(project, watch, said):
    edit(project, "config/methods/dwf-expert-fgsm.yaml", "watch: {attack: pgd", f"watch: {{{watch}, attack: pgd")
    with pytest.raises(ConfigError, match=rf"config/methods/dwf-expert-fgsm.yaml: {said}"):
        resolve_run(project, "paper", **{**RUN, "method": "dwf-expert-fgsm"})


def test_a_scale_cannot_smuggle_an_unknown_key_into_a_recipe(project):
    edit(project, "config/scales/smoke.yaml", "recipe: {epochs: 2,", "recipe: {epochs: 2, epsilonn: 1,")
    with pytest.raises(ConfigError, match=r"config/scales/smoke.yaml: recipe: .*unknown key 'epsilonn'.*recipe trades"):
        resolve_recipe(project, "smoke", "trades")


RUN = {"dataset": "digits", "arch": "resnet18", "method": "trades", "seed": 0}


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("config/methods/trades.yaml", "beta: 6.0", "beta: 5.0", True),
        ("config/methods/trades.yaml", "title:", "version: 2\ntitle:", True),
        ("config/methods/_shared.yaml", "version: 1", "version: 2", True),
        ("config/attacks.yaml", "pgd10:", "pgd10: # ten steps\n ", False),
        ("config/methods/trades.yaml", "title: TRADES", "title: Trades", False),
        ("config/methods/trades.yaml", "title:", "# a comment\ntitle:", False),
        ("config/methods/pgd-at.yaml", "title:", "version: 2\ntitle:", False),
        ("config/scales/smoke.yaml", "epochs: 2,", "epochs: 4,", True),
        ("config/scales/smoke.yaml", "batch_size: 500", "batch_size: 400", False),
        ("config/scales/smoke.yaml", "scikit-learn's digits", "Digits", False),
    ],
)
def test_the_digest_of_a_run_changes_exactly_with_what_decides_its_weights(project, file, old, new, changes):
    before = digest(resolve_run(project, "smoke", **RUN))
    edit(project, file, old, new)
    assert (digest(resolve_run(project, "smoke", **RUN)) != before) is changes


@pytest.mark.parametrize(
    ("method", "key", "steps", "step_size"),
    [
        ("pgd-at", "attack", 5, 4 / 255),
        ("hybrid", "attack", 5, 0.015),
        ("hybrid", "alpha_attack", 5, 0.015),
        ("advmoe-released", "attack", 2, "5/255"),
        ("fgsm-at", "attack", 1, 0.03),
        # The scale names its steps: that holds.
        ("trades", "attack", 7, 4 / 255),
    ],
)
def test_a_scale_shortens_attacks_of_training(project, method, key, steps, step_size):
    edit(project, "config/scales/smoke.yaml", "max_attack_steps: 2", "max_attack_steps: 5")
    if method == "trades":
        edit(project, "config/scales/smoke.yaml", "\nrecipes:", "\nrecipes:\n  trades: {attack: {steps: 7}}")
    attack = resolve_recipe(project, "smoke", method)[key]
    assert attack["steps"] == steps
    assert attack["step_size"] == (step_size if isinstance(step_size, str) else pytest.approx(step_size))

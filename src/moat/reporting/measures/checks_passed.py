"""How many of a run's checks passed, of those that apply to it; with several seeds those of the worst one."""

READS = ("checks",)
UNIT = ""


def measure(cell, runs, results):
    passed = []
    for run in runs:
        checks = [check for check in results.checks(run)["checks"] if check.get("state") != "not-applicable"]
        passed.append((sum(bool(check["passed"]) for check in checks), len(checks)))
    if not passed:
        return None
    worst, n = min(passed, key=lambda pair: pair[0] - pair[1])
    return {"measured": worst, "measured_std": None, "ci_low": worst, "ci_high": worst, "n": n}


def show(value: float) -> str:
    return f"{value:g}"


def text(values) -> str:
    return f"{values['measured']:g} of {values['n']}"

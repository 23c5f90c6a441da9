"""Snakemake takes its options from the default profile: the link ``profiles`` is where it looks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# What results depend on. Of anything else, a user's own profile decides: the default one would come before it.
NEEDED = {"rerun-incomplete", "rerun-triggers", "max-checksum-file-size", "show-failed-logs", "retries"}
USED = "Using workflow specific profile profiles/default"


def test_the_default_profile_sets_no_matter_of_taste():
    (file,) = (ROOT / "workflow/profiles/default").glob("*.yaml")
    assert set(yaml.safe_load(file.read_text())) == NEEDED


@pytest.mark.long
def test_the_link_leads_snakemake_to_the_default_profile(tmp_path):
    shutil.copytree(ROOT / "workflow/profiles", tmp_path / "workflow/profiles")
    shutil.copy(ROOT / "profiles", tmp_path / "profiles", follow_symlinks=False)
    (tmp_path / "Snakefile").write_text("rule all:\n    output: 'made'\n    shell: 'false'\n")

    def dry_run():
        done = subprocess.run([sys.executable, "-m", "snakemake", "-n"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert USED in dry_run()
    # Without the link nothing is said, and nothing of the profile applies.
    (tmp_path / "profiles").unlink()
    assert USED not in dry_run()

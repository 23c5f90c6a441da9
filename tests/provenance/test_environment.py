"""Versions, hardware and commit of a result."""

from moat.provenance import environment


def test_the_environment_names_hardware_and_versions():
    found = environment.environment()
    assert found["hardware"]["cpu"] and found["hardware"]["cores"] >= 1
    assert {"python", "moat", "torch"} <= set(found["versions"])


def test_the_commit_says_when_the_tree_differs_from_it(tmp_path):
    import subprocess

    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert environment.git_commit(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "x")
    commit = environment.git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert environment.git_commit(tmp_path) == commit + "+"

"""Versions, hardware and commit of a result."""

from moat import provenance


def test_the_environment_names_hardware_and_versions():
    environment = provenance.environment()
    assert environment["hardware"]["cpu"] and environment["hardware"]["cores"] >= 1
    assert {"python", "moat", "torch"} <= set(environment["versions"])


def test_the_commit_says_when_the_tree_differs_from_it(tmp_path):
    import subprocess

    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert provenance.git_commit(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "x")
    commit = provenance.git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert provenance.git_commit(tmp_path) == commit + "+"

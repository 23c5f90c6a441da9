"""Versions, hardware and commit of a result."""

import subprocess

import pytest

from moat.provenance import environment


def test_the_environment_names_hardware_and_versions():
    found = environment.environment()
    assert found["hardware"]["cpu"] and found["hardware"]["cores"] >= 1
    assert {"python", "moat", "torch"} <= set(found["versions"])


def test_the_commit_says_when_the_tree_differs_from_it(tmp_path):
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


@pytest.fixture
def repository(tmp_path):
    """Somebody's repository with a commit, in which a folder without one of its own lies."""

    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/a").write_text("1")
    git("add", "project/a")
    git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "x")
    return tmp_path


def test_the_commit_of_a_repository_around_the_project_is_not_the_projects(repository):
    assert environment.git_commit(repository / "project") is None
    assert len(environment.git_commit(repository)) == 40


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_the_commit_is_not_that_of_the_hook_which_started_the_command(
    repository, tmp_path_factory, monkeypatch, variable
):
    commit, elsewhere = environment.git_commit(repository), tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv(variable, str(repository / ".git"))
    assert environment.git_commit(elsewhere) is None
    monkeypatch.setenv(variable, str(elsewhere))
    assert environment.git_commit(repository) == commit

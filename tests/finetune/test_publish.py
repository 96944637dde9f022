"""What a run publishes of itself, and what it keeps back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from finetune.common.publish import Publisher
from finetune.csp.__main__ import app as csp
from finetune.tmrl.__main__ import app as tmrl
from models.folders import checkpoint_folder
from models.policies.state_flow import StateFlowPolicy
from models.policies.steered import SteeredPolicy
from models.revisions import RevisionStore

if TYPE_CHECKING:
    from pathlib import Path


class Run:
    """Checkpoints that differ, with a success and the lower end of its interval."""

    def __init__(self, store: Path, job: str = "run", **settings: object) -> None:
        self.publisher, self.made, self.job = Publisher(store, job=job, **settings), 0, job

    def evaluated(self, success: float, low: float) -> str | None:
        self.made += 1

        def make(folder: Path) -> None:
            folder.mkdir()
            (folder / "config.json").write_text(f"{self.job} {self.made}")

        return self.publisher.consider(make, {"success": success, "success_low": low, "loss": 1.0})


def test_what_is_not_surely_better_is_kept_back(tmp_path: Path) -> None:
    run, store = Run(tmp_path, over=0.5), RevisionStore(tmp_path)
    assert run.evaluated(0.7, 0.45) is None
    first = run.evaluated(0.7, 0.55)
    assert run.evaluated(0.8, 0.69) is None
    second = run.evaluated(0.9, 0.75)
    assert [revision.id for revision in store.read().revisions] == [first, second]
    assert store.read().revisions[1].parent == first
    assert store.read().revisions[1].metrics == {"success": 0.9, "success_low": 0.75}


def test_what_the_operator_took_back_is_not_published_again_for_less(tmp_path: Path) -> None:
    first = Run(tmp_path, over=0.5).evaluated(0.6, 0.55)
    run = Run(tmp_path, "other")
    run.evaluated(0.9, 0.8)
    RevisionStore(tmp_path).roll_back(first)
    again = Run(tmp_path, "other")  # killed, and gone on with
    assert again.evaluated(0.85, 0.75) is None
    assert Run(tmp_path, "third").evaluated(0.85, 0.75) is not None


def test_with_nothing_to_compare_it_says_so_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--publish-over RATE"):
        Publisher(tmp_path, job="run")
    assert Run(tmp_path, always=True).evaluated(0.0, 0.0) is not None
    command = ["pretrain", "--out", str(tmp_path / "out"), "--task", "eight-goals", "--publish", str(tmp_path / "none")]
    refused = CliRunner().invoke(csp, command)
    assert refused.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_policy_that_was_cloned_is_judged_and_published(tmp_path: Path) -> None:
    sizes = ["--demonstrations", "5", "--steps", "3", "--batch", "8", "--width", "16", "--episodes", "2"]
    command = ["pretrain", "--out", str(tmp_path / "out"), "--task", "eight-goals", *sizes]
    to = ["--publish", str(tmp_path / "store"), "--publish-always"]
    for _ in range(2):  # the second finds the run finished, and the same content there
        done = CliRunner().invoke(csp, [*command, *to], catch_exceptions=False)
        assert done.exit_code == 0
    store = RevisionStore(tmp_path / "store")
    (revision,) = store.read().revisions
    assert revision.id in done.stdout
    assert revision.metrics.keys() == {"success", "success_low", "success_high", "episodes"}
    assert StateFlowPolicy(StateFlowPolicy.Config(checkpoint=str(store.folder(revision)))).spec.chunk_length == 8


def test_a_steered_policy_is_published_with_what_it_steers(tmp_path: Path) -> None:
    base = checkpoint_folder("zoo:eight-goals")
    sizes = ["--steps", "40", "--warmup", "2", "--batch", "4", "--evaluate-every", "40", "--episodes", "1"]
    command = ["train", "--out", str(tmp_path / "out"), "--policy", str(base), "--task", "eight-goals:named=0,shift=4"]
    to = ["--publish", str(tmp_path / "store"), "--publish-always"]
    done = CliRunner().invoke(tmrl, [*command, *sizes, *to], catch_exceptions=False)
    assert done.exit_code == 0
    store = RevisionStore(tmp_path / "store")
    revisions = store.read().revisions
    assert len(revisions) == 2  # before the first step, and after the last
    policy = SteeredPolicy(SteeredPolicy.Config(checkpoint=str(store.folder(revisions[-1]))))
    assert policy.spec.state.size == 10

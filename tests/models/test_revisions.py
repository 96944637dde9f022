"""Revisions on disk: whole or not there, whoever writes and whenever it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.revisions import BASE, Revision, RevisionStore, copied

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import os, signal, sys
from pathlib import Path
from models.revisions import RevisionStore

name, number, killed_in = sys.argv[2], int(sys.argv[3]), sys.argv[4]
store = RevisionStore(Path(sys.argv[1]))

def make(folder):
    folder.mkdir()
    (folder / "config.json").write_text(f"{name} {index}")
    if killed_in == "copy":
        os.kill(os.getpid(), signal.SIGKILL)

if killed_in == "append":
    store._append = lambda revision: os.kill(os.getpid(), signal.SIGKILL)
for index in range(number):
    store.publish(make, metrics={"success": index / number}, job=name)
"""


def writer(folder: Path, name: str, number: int = 1, *, killed_in: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(folder), name, str(number), killed_in]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


def publish(store: RevisionStore, text: str, **facts: float) -> Revision:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(text)

    return store.publish(make, metrics=facts, job="test")


def test_an_absent_folder_serves_the_configured_checkpoint(tmp_path: Path) -> None:
    standing = RevisionStore(tmp_path / "none").read()
    assert (standing.current, standing.newest, standing.revisions) == (BASE, BASE, ())


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [writer(tmp_path / "store", name, 15) for name in ("one", "two")]
    assert [process.wait(timeout=60) for process in writers] == [0, 0]
    store = RevisionStore(tmp_path / "store")
    revisions = store.read().revisions
    texts = {(store.folder(revision) / "config.json").read_text() for revision in revisions}
    assert texts == {f"{name} {index}" for name in ("one", "two") for index in range(15)}
    assert [int(revision.id[:6]) for revision in revisions] == list(range(1, 31))
    assert [revision.parent for revision in revisions] == [BASE, *(revision.id for revision in revisions[:-1])]


@pytest.mark.parametrize("moment", ["copy", "append"])
def test_a_writer_that_is_killed_leaves_no_half_revision(tmp_path: Path, moment: str) -> None:
    store = RevisionStore(tmp_path)
    first = publish(store, "first")
    assert writer(tmp_path, "killed", killed_in=moment).wait(timeout=60) == -9
    assert store.read().revisions == (first,)
    second = publish(store, "second")
    assert store.read().revisions == (first, second)
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_dir()} == {first.id, second.id}


def test_a_line_that_was_cut_off_is_no_revision_and_spoils_no_later_one(tmp_path: Path) -> None:
    store = RevisionStore(tmp_path)
    first = publish(store, "first")
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write('{"id": "000002-cafe')
    assert store.read().revisions == (first,)
    second = publish(store, "second")
    assert store.read().revisions == (first, second)


def test_the_same_content_again_is_the_same_revision(tmp_path: Path) -> None:
    store = RevisionStore(tmp_path)
    assert publish(store, "once", success=0.5) == publish(store, "once", success=0.6)
    assert len(store.read().revisions) == 1


def test_back_is_to_the_parent_and_the_newest_is_tried_by_nobody(tmp_path: Path) -> None:
    store = RevisionStore(tmp_path)
    first, second = publish(store, "first"), publish(store, "second")
    assert store.read().current == second.id
    assert store.roll_back() == first.id
    standing = store.read()
    assert (standing.current, standing.newest, standing.pin.canary) == (first.id, second.id, 0.0)
    third = publish(store, "third")
    assert third.parent == first.id
    assert store.read().current == first.id
    assert store.roll_back() == BASE
    with pytest.raises(ValueError, match="has no parent"):
        store.roll_back()
    store.pin(None)
    assert store.read().current == third.id
    with pytest.raises(ValueError, match="'other' is not known"):
        store.pin("other")


def test_only_weights_settings_and_cards_are_taken(tmp_path: Path) -> None:
    store, checkpoint = RevisionStore(tmp_path / "store"), tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "weights.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"weights\.bin is not allowed"):
        store.publish(copied(checkpoint), metrics={}, job="test")
    (checkpoint / "weights.bin").unlink()
    (checkpoint / "elsewhere.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"elsewhere\.json is not allowed"):
        store.publish(copied(checkpoint), metrics={}, job="test")
    assert store.read().revisions == ()

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clients.errors import RoboserveError
from clients.preference_messages import LabelPair
from finetune.preference.judges import AskOptions, LocalLabeller, ServedLabeller
from finetune.preference.material import drawn_pairs, listed_pairs
from models.preference.oracle import OracleLabeller
from roboserve.cli import app
from roboserve.labellers import open_labeller
from tests.serving.preference_running import RunningPreference
from tests.serving.preferences import BrightEngine, preference_server
from tests.vlms import tiny_vlm


@pytest.fixture
def pictures(tmp_path):
    for name, level in (("dark", 10), ("dim", 90), ("bright", 230)):
        Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def running(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBOSERVE_STATE_DIR", str(tmp_path / "state"))
    with RunningPreference.of(preference_server(BrightEngine(bias=0.5))) as server:
        yield server


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def listing(folder, count: int = 12):
    rows = []
    for at in range(count):
        levels = (5 + 9 * at, 200 - 7 * at)
        for side, level in zip("ab", levels, strict=True):
            Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(folder / f"{at}{side}.png")
        row = {"goal": "lamp on", "first": f"{at}a.png", "second": [f"{at}b.png"]}
        rows.append(json.dumps({**row, "first_value": levels[0] / 255, "second_value": levels[1] / 255}))
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "pairs.jsonl"


def test_two_pictures_are_compared_by_a_served_labeller(running, pictures) -> None:
    base = (
        "prefer",
        pictures / "dark.png",
        pictures / "bright.png",
        "--goal",
        "the lamp is on",
        "--server",
        running.url,
    )
    done = invoke(*base, "--order-swap", "--audit")
    assert done.exit_code == 0, done.output
    assert "bright.png" in done.output.splitlines()[0]
    assert "label 1" in done.output
    assert "swapped" in done.output
    told = json.loads(invoke(*base, "--protocol", "two_stage", "--json").stdout)
    assert told["label"] == 1
    assert told["model"]["architecture"] == "vlm"


def test_what_cannot_be_is_told_in_a_sentence(running, pictures, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    for words, text in (
        ((pictures / "dark.png", tmp_path / "broken.png", "--goal", "x"), "damaged"),
        ((pictures / "dark.png", pictures / "dim.png", "--goal", "x", "--protocol", "direct"), "protocol"),
        ((pictures / "dark.png", pictures / "dim.png", "--goal", " "), "goal: empty"),
    ):
        done = invoke("prefer", *words, "--server", running.url)
        assert done.exit_code == 1
        assert text in done.output


def test_a_checkpoint_is_asked_in_this_process(pictures, tmp_path) -> None:
    folder = tiny_vlm(tmp_path / "vlm")
    base = ("prefer", pictures / "dark.png", pictures / "bright.png", "--goal", "on", "--model", folder, "--json")
    one = json.loads(invoke(*base, "--order-swap").stdout)
    assert sum(one["chances"]) == pytest.approx(1.0)
    assert one["order_gap"] is not None
    assert one["model"]["prompt_version"].startswith("general-1-")
    two = json.loads(invoke(*base, "--protocol", "two_stage", "--audit").stdout)
    assert [reply["stage"] for reply in two["replies"]] == ["analysis", "label"]


def test_labels_are_judged_by_the_gap(running, tmp_path) -> None:
    path = listing(tmp_path)
    done = invoke("evaluate", "preference", running.url, "--pairs", path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "largest third" in done.output
    found = json.loads((tmp_path / "out" / "preferences.json").read_text())
    assert [third["accuracy"] for third in found["whole"]["thirds"]][-1] == 1.0
    assert found["whole"]["order_bias"] > 0.01
    assert len(found["pairs"]) == 12
    assert (tmp_path / "out" / "preferences.png").stat().st_size > 10_000
    oracle = invoke("evaluate", "preference", "oracle", "--pairs", path, "--out", tmp_path / "truth", "--one-order")
    assert oracle.exit_code == 0, oracle.output
    truth = json.loads((tmp_path / "truth" / "preferences.json").read_text())
    assert truth["whole"]["accuracy"] == 1.0
    assert truth["whole"]["order_bias"] is None


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"goal": "x"}', '{"goal":"x","first":"no.png","second":"no.png","first_value":0,"second_value":1}'],
)
def test_a_wrong_line_is_named(tmp_path, line) -> None:
    (tmp_path / "pairs.jsonl").write_text(f"\n{line}\n")
    done = invoke("evaluate", "preference", "oracle", "--pairs", tmp_path / "pairs.jsonl")
    assert done.exit_code == 1
    assert "line 2" in done.output


def test_a_labeller_in_this_process_skips_equal_pictures() -> None:
    async def make() -> OracleLabeller:
        return OracleLabeller(OracleLabeller.Config())

    judge = LocalLabeller(make)
    grey = np.full((8, 8, 3), 9, np.uint8)
    found = judge.label(
        [LabelPair("x", grey, grey, values=(0, 1)), LabelPair("x", grey, grey + 50, values=(0, 1))], AskOptions()
    )
    assert [(label.label, label.source) for label in found] == [(-1, "alike"), (1, "asked")]
    judge.close()
    with pytest.raises(FileNotFoundError):
        open_labeller("zoo:nothing-of-that-name")


def test_pairs_go_in_as_many_requests_as_their_bytes_take(running) -> None:
    judge = ServedLabeller(running.url)
    judge._room = 60_000
    random = np.random.default_rng(0)
    pairs = [LabelPair("x", *random.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)) for _ in range(9)]
    assert len(judge.label(pairs, AskOptions())) == 9
    assert running.server.metrics.text().count(b'code="ok"') >= 1
    line = next(line for line in running.server.metrics.text().decode().splitlines() if "requests_total{" in line)
    assert float(line.rpartition(" ")[2]) == 5
    engine = running.server.labeller._engine
    engine.spec = replace(engine.spec, content_hash="c" * 64)
    with pytest.raises(RoboserveError, match="changed from"):
        judge.label(pairs[:1], AskOptions())
    judge.close()


class _Rollout:
    instruction, quality = "lamp on", "successful"

    def __init__(self, length: int) -> None:
        self.length = length

    def frames(self):
        return (np.full((8, 8, 3), 10 * index, np.uint8) for index in range(self.length))


class _Material:
    tasks = ("lamp",)
    rollouts = (_Rollout(5), _Rollout(9))

    def of(self, task, *, quality=None):
        return [0, 1]


def test_pairs_are_drawn_from_successes_with_their_progress(tmp_path) -> None:
    drawn = drawn_pairs(_Material(), count=40, seed=1)
    again = drawn_pairs(_Material(), count=40, seed=1)
    assert [item.values for item in drawn] == [item.values for item in again]
    values = {value for item in drawn for value in item.values}
    assert values <= {index / 4 for index in range(5)} | {index / 8 for index in range(9)}
    assert len(values) > 6
    assert len(listed_pairs(listing(tmp_path))) == 12

"""Evaluation of reward models: judges whose figures can be worked out, on rollouts whose worth is written in colour."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clients.errors import RoboserveError
from finetune.rewards.evaluate import EvaluateConfig, evaluate, to_map
from finetune.rewards.figures import confusion_matrix, ranking_estimates
from finetune.rewards.judges import LocalJudge, open_judge
from finetune.rewards.material import load_material
from finetune.rewards.pairs import AGAINST, known_pairs
from models.rewards.contract import FrameValues, RewardSpec
from models.rewards.metrics import QUALITIES, confusion, kendall, ranking
from models.rewards.scripted import BrightnessReward
from roboserve.cli import app
from robot_client.dataset import DatasetWriter
from tests.serving.reward_running import RunningReward

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.rewards.evaluate import Evaluation, JudgeResult

BRIGHTNESS = "models.rewards.scripted:BrightnessReward"
TASKS = {"red": 0, "blue": 2}
"""Task to the colour channel that tells how far its rollouts get."""
ENDS = {"expert": 240, "near_miss": 160, "stalled": 40}
QUALITY = dict(zip(ENDS, reversed(QUALITIES), strict=True))
LENGTH = 12


class OracleReward:
    """Reads the channel that its instruction names: progress is its level, and so is the chance of success."""

    spec = RewardSpec(
        id="oracle",
        revision="1",
        content_hash="1" * 64,
        architecture="scripted",
        image_size=None,
        max_frames=16,
        frame_policy="linspace-8",
    )

    def prepare(self, frame):
        return frame

    def cost(self, frame):
        return 1

    def encode(self, frames):
        return [Colours(frame.reshape(-1, 3).mean(axis=0) / 255) for frame in frames]

    def score(self, queries):
        return [FrameValues(progress=values, success=values) for values in map(self._levels, queries)]

    def compare(self, pairs):
        ends = [[clip[-1].levels[TASKS[pair.instruction]] for clip in (pair.first, pair.second)] for pair in pairs]
        return [float(first > second) for first, second in ends]

    def _levels(self, query):
        return np.array([frame.levels[TASKS[query.instruction]] for frame in query.frames], np.float32)


class Colours:
    nbytes = 24

    def __init__(self, levels) -> None:
        self.levels = levels


class FirstIsBetter(OracleReward):
    def compare(self, pairs):
        return [0.9 for _ in pairs]


class Silent(OracleReward):
    def score(self, queries):
        return [FrameValues(progress=values, success=None) for values in map(self._levels, queries)]

    def compare(self, pairs):
        raise NotImplementedError


Silent.spec = RewardSpec(**{**OracleReward.spec.__dict__, "supports_compare": False, "supports_success": False})


def write_task(root: Path, task: str, *, extra: Any = None, splits: tuple[str, ...] = ("train", "validation")) -> Path:
    """Two rollouts of each kind in each split; the channel of the task rises linearly to the kind's end."""
    names = {"state_names": ["x"], "action_names": ["x"], "robot_type": "none"}
    writer = DatasetWriter.create(root / task, fps=10, cameras={"front": (32, 32)}, **names)
    for split, (kind, end), twin in product(splits, ENDS.items(), range(2)):
        writer.begin()
        for level in np.linspace(10, end - 4 * twin, LENGTH):
            image = np.zeros((32, 32, 3), np.uint8)
            image[..., TASKS[task]] = round(level)
            writer.add({"front": image}, np.zeros(1, np.float32), np.zeros(1, np.float32))
        known = {"success": kind == "expert", "kind": kind, "quality": QUALITY[kind], "split": split}
        writer.end(task=task, extra=known if extra is None else extra)
    writer.close()
    return root / task


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for task in TASKS:
        write_task(root, task)
    return root


@pytest.fixture(scope="module")
def oracle(data: Path) -> Evaluation:
    return evaluated(data, OracleReward())


def evaluated(data: Path, *models: Any, **config: Any) -> Evaluation:
    opened = [lambda model=model: LocalJudge(model) for model in models]
    return evaluate(opened, load_material([data]), EvaluateConfig(**config))


def values(result: JudgeResult) -> dict[str, float]:
    return {name: figure.value for name, figure in result.overall.figures.items()}


def test_an_oracle_gets_everything_right(oracle: Evaluation):
    found = values(oracle.judges["oracle"])
    assert found["voc_pearson"] > 0.99
    assert found["voc_spearman"] > 0.99
    assert found["kendall"] == found["pairs"] == found["success_auprc"] == 1.0
    assert found["gap_failure"] == pytest.approx((ENDS["expert"] - ENDS["stalled"]) / 255, abs=0.03)
    assert found["gap_suboptimal"] == pytest.approx((ENDS["expert"] - ENDS["near_miss"]) / 255, abs=0.03)
    assert found["confusion"] == pytest.approx(ENDS["expert"] / 255, abs=0.04)
    preference = oracle.judges["oracle"].overall.preference
    assert set(preference) == {*AGAINST, "near_miss", "stalled", "all"}
    assert {sort: figures.accuracy.value for sort, figures in preference.items()} == dict.fromkeys(preference, 1.0)
    assert preference["all"].disagreement == 0.0
    assert preference["all"].order_bias == 0.0


def test_the_clock_stands_beside_agrees_with_time_and_knows_nothing_else(oracle: Evaluation):
    found = values(oracle.judges["clock"])
    assert found["voc_pearson"] == pytest.approx(1.0)
    assert found["voc_spearman"] == pytest.approx(1.0)
    assert (found["kendall"], found["pairs"]) == (0.0, 0.5)
    assert (found["gap_failure"], found["gap_suboptimal"], found["confusion"]) == (0.0, 0.0, 0.0)
    assert found["success_auprc"] == pytest.approx(1 / 3), "every clip ends done: precision is the share of successes"
    preference = oracle.judges["clock"].overall.preference
    assert {figures.accuracy.value for figures in preference.values()} == {0.5}


def test_a_model_that_does_not_read_the_instruction_confuses_tasks(data: Path):
    result = evaluated(data, BrightnessReward(BrightnessReward.Config())).judges["brightness"]
    found = values(result)
    assert found["confusion"] == pytest.approx(0.0, abs=1e-6)
    assert found["kendall"] == 1.0
    assert found["success_auprc"] == pytest.approx(1 / 3), "one channel of three is never over one half"


def test_order_bias_is_told_apart_from_accuracy(data: Path):
    figures = evaluated(data, FirstIsBetter()).judges["oracle"].overall.preference["all"]
    assert figures.accuracy.value == 0.5
    assert figures.order_bias == pytest.approx(0.4)
    assert figures.disagreement == 1.0


def test_what_a_model_does_not_give_is_left_out(data: Path):
    row = evaluated(data, Silent()).judges["oracle"].overall
    assert row.preference == {}
    assert "success_auprc" not in row.figures
    assert row.figures["kendall"].value == 1.0


def test_groups_have_rows_of_their_own_and_confusion_is_that_of_their_matrix(data: Path):
    found = evaluated(data, OracleReward(), groups={"warm": ("red",), "both": ("red", "blue")})
    result = found.judges["oracle"]
    assert [(row.name, row.tasks) for row in result.groups] == [
        ("warm", ("red",)),
        ("both", ("red", "blue")),
        ("all", found.material.tasks),
    ]
    matrix = confusion_matrix(found.material.tasks, found.material, result.answers)
    assert result.overall.figures["confusion"].value == pytest.approx(confusion(matrix))
    assert [row.name for row in result.tasks] == list(found.material.tasks)
    with pytest.raises(RoboserveError, match=r"group cold: green; the data's tasks are blue, red"):
        evaluated(data, OracleReward(), groups={"cold": ("green",)})


def test_a_second_model_is_compared_frame_by_frame(data: Path):
    class Dimmer(OracleReward):
        def _levels(self, query):
            return 0.9 * super()._levels(query)

    found = evaluated(data, OracleReward(), Dimmer())
    assert list(found.judges) == ["oracle", "oracle float32", "clock"]
    finals = [curve.progress[-1] for curve in found.judges["oracle"].answers.curves]
    assert found.drift is not None
    assert found.drift["final_mean"] == pytest.approx(0.1 * np.mean(finals), rel=1e-4)
    assert found.drift["progress_max"] == pytest.approx(0.1 * max(finals), rel=1e-3)
    assert found.drift["preference_mean"] == 0.0


def test_every_frame_is_encoded_once(data: Path):
    model = BrightnessReward(BrightnessReward.Config())
    evaluated(data, model)
    assert model.encoded == len(load_material([data]).rollouts) * LENGTH


def test_a_run_that_was_killed_goes_on_where_it_was(data: Path, oracle: Evaluation, tmp_path: Path):
    class Asked(OracleReward):
        queries = 0

        def score(self, queries):
            Asked.queries += len(queries)
            return super().score(queries)

    def stop(_judge: str, stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("other instructions", 2):
            raise KeyboardInterrupt

    material, opened = load_material([data]), [lambda: LocalJudge(Asked())]
    with pytest.raises(KeyboardInterrupt):
        evaluate(opened, material, EvaluateConfig(), journals=tmp_path, report=stop)
    (journal,) = tmp_path.iterdir()
    with journal.open("a", encoding="utf-8") as sink:
        sink.write('["crossed", 3, [0.1')
    found = evaluate(opened, material, EvaluateConfig(), journals=tmp_path)
    assert to_map(found) == to_map(oracle)
    assert Asked.queries == 12 * (LENGTH - 8 + 1) + 4 * 2, "nothing is asked twice"
    assert not list(tmp_path.iterdir())


def test_leaving_frames_out_keeps_the_last_value(data: Path, oracle: Evaluation):
    sparse = evaluated(data, OracleReward(), every=5).judges["oracle"]
    assert [list(curve.frames) for curve in sparse.answers.curves[:1]] == [[0, 5, 10, 11]]
    assert values(sparse)["gap_failure"] == pytest.approx(values(oracle.judges["oracle"])["gap_failure"])


def test_a_served_model_gets_the_figures_it_gets_in_this_process(data: Path):
    with RunningReward() as running:
        served = evaluate([lambda: open_judge(running.url)], load_material([data]), EvaluateConfig())
    local = evaluate([lambda: open_judge(BRIGHTNESS)], load_material([data]), EvaluateConfig())
    there, here = (to_map(found)["judges"] for found in (served, local))
    assert there["mine"]["groups"] == here["brightness"]["groups"]
    assert there["mine"]["tasks"] == here["brightness"]["tasks"]
    assert there["mine"]["model"]["content_hash"] == here["brightness"]["model"]["content_hash"]


def test_pairs_show_a_success_first_and_what_is_worse_second(data: Path):
    material = load_material([data])
    pairs = known_pairs(material, seed=3)
    assert pairs == known_pairs(material, seed=3)
    for pair in pairs:
        better, worse = (material.rollouts[played.rollout] for played in (pair.better, pair.worse))
        assert better.quality == "successful"
        assert pair.instruction == better.instruction
        if pair.against in ("suboptimal", "failure"):
            assert (worse.task, worse.quality, worse.kind) == (better.task, pair.against, pair.kind)
        elif pair.against == "different_task":
            assert worse.task != better.task
        else:
            assert worse is better
            assert pair.worse.frames[-1] < LENGTH // 2, "it ends where the success began"


def test_rollouts_are_those_of_the_split_and_a_limit_takes_qualities_in_turn(data: Path):
    assert len(load_material([data]).rollouts) == len(load_material([data], split="train").rollouts) == 12
    few = load_material([data / "red"], limit=4).rollouts
    assert [rollout.kind for rollout in few] == ["expert", "expert", "near_miss", "stalled"]


def test_datasets_that_cannot_be_judged_are_refused(data: Path, tmp_path: Path):
    with pytest.raises(RoboserveError, match="no LeRobot v3 dataset and holds none"):
        load_material([tmp_path])
    with pytest.raises(RoboserveError, match=r"split: 'test' is not in the dataset blue; it has train, validation"):
        load_material([data], split="test")
    with pytest.raises(RoboserveError, match="comes twice"):
        load_material([data, data / "red"])
    write_task(tmp_path / "bare", "red", extra={"seed": 1})
    with pytest.raises(RoboserveError, match="episode 0 of red has neither success nor quality"):
        load_material([tmp_path / "bare"])
    write_task(tmp_path / "outcome", "red", extra={"success": True})
    assert {each.quality for each in load_material([tmp_path / "outcome"]).rollouts} == {"successful"}


@pytest.mark.parametrize("seed", range(3))
def test_ranking_of_all_pairs_is_ranking_of_all_tuples(seed: int):
    random = np.random.default_rng(seed)
    given = {
        quality: list(random.integers(0, 5, count) / 4) for quality, count in zip(QUALITIES, (3, 2, 4), strict=True)
    }
    tuples = [kendall(values, (0, 1, 2)) for values in product(*(given[quality] for quality in QUALITIES))]
    estimates = ranking_estimates(given, seed=seed)
    assert ranking(given)["kendall"] == pytest.approx(np.mean(tuples))
    assert estimates["kendall"].value == pytest.approx(np.mean(tuples))
    assert estimates["kendall"].low <= estimates["kendall"].value <= estimates["kendall"].high


def test_the_command_prints_the_clock_and_writes_figures_values_and_plots(data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    command = ["evaluate", "reward", BRIGHTNESS, "--data", str(data), "--group", "warm=red", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "brightness: revision 1" in done.output
    assert "clock" in done.output
    assert "warm (tasks: 1)" in done.output
    figures = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert figures["judges"]["brightness"]["model"]["content_hash"] == "0" * 64
    assert figures["judges"]["brightness"]["frame_policy"] == "linspace-8"
    assert figures["judges"]["clock"]["groups"][-1]["figures"]["kendall"]["value"] == 0.0
    rollouts = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert len(rollouts) == 12
    assert len(rollouts[0]["brightness"]["progress"]) == LENGTH
    page = (tmp_path / "evaluation.html").read_text("utf-8")
    assert "brightness: revision 1" in page
    assert page.count('src="data:image/png;base64,') == 3, "it needs no other file"
    for name in ("curves", "confusion", "preference"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 10, "something is drawn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group", "warm"], "say NAME=TASK,TASK"),
        (["--frame-policy", "newest-8"], "frame policy 'newest-8'"),
        (["--split", "test"], "split: 'test'"),
        (["--camera", "wrist"], "camera: wrist"),
    ],
)
def test_the_command_says_what_it_cannot_use(data: Path, tmp_path: Path, arguments: list[str], message: str):
    command = ["evaluate", "reward", BRIGHTNESS, "--data", str(data), "--out", str(tmp_path / "out"), *arguments]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out/evaluation.json").exists()


@pytest.mark.parametrize("more", [["ws://127.0.0.1:1/reward/x"], ["zoo:metaworld-robometer", "--against", "x"]])
def test_a_quantised_self_needs_a_checkpoint_and_stands_alone(tmp_path, more):
    command = ["evaluate", "reward", *more, "--data", str(tmp_path), "--quantization", "int8"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 1
    assert "--quantization" in ended.output

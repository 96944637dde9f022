"""Many adapters on one policy: mixed in a batch, read from a folder that changes, kept within bounds."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune.lora.artefacts import merge_adapter
from models.peft_files import CONFIG, WEIGHTS, WrongBaseError
from models.policies.adapters import FACTS
from models.policies.flow_vla import FlowVLAPolicy
from tests.adapters import HEAD, make_adapter, make_base, make_item

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, base: Path) -> Path:
    """Adapters that differ in everything that may differ within a batch."""
    folder = tmp_path_factory.mktemp("made")
    make_adapter(folder / "one", base, seed=1, rank=2)
    make_adapter(folder / "two", base, seed=2, rank=5, stabilised=True, targets=("first", "enter"))
    make_adapter(
        folder / "three", base, seed=3, rank=3, targets=r"vision.*film|words\.mix\.[02]", heads=(HEAD,), mean=5.0
    )
    return folder


def opened(base: Path, folder: Path, **settings: Any) -> FlowVLAPolicy:
    plain = {"device": "cpu", "adapters_poll_s": 0.0}
    return FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(base), adapters=str(folder), **{**plain, **settings}))


def actions(policy: FlowVLAPolicy, number: int, adapter: str | None = None) -> np.ndarray:
    return policy.act([make_item(number, adapter)])[0].actions


def test_a_batch_of_different_adapters_gives_what_each_gives_merged_into_the_base(
    base: Path, made: Path, tmp_path: Path
) -> None:
    policy = opened(base, made)
    leftover = np.random.default_rng(9).normal(size=(10, 4)).astype(np.float32)
    names = ("one", "three", None, "two", "one", None)
    items = [
        make_item(number, name, **({"leftover": leftover, "inference_delay": 3} if number == 1 else {}))
        for number, name in enumerate(names)
    ]
    together = policy.act(items)
    merged = {name: merge_adapter(made / name, str(base), tmp_path / name) for name in ("one", "two", "three")}
    plain = {
        name: FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(merged.get(name, base)), device="cpu"))
        for name in (*merged, None)
    }
    answers = []
    for name, item, chunk in zip(names, items, together, strict=True):
        (alone,) = plain[name].act([replace(item, adapter=None)])
        np.testing.assert_allclose(chunk.model_actions, alone.model_actions, atol=1e-4)
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=2e-4)
        assert chunk.adapter_hash == (None if name is None else policy.adapters[name])
        answers.append(chunk.actions)
    for number, name in enumerate(names):
        if name is not None:  # or the test would pass with adapters that change nothing
            assert np.abs(answers[number] - actions(policy, number)).max() > 0.01


def test_no_more_adapters_stay_in_memory_than_may_and_the_one_asked_for_longest_ago_goes(
    base: Path, made: Path
) -> None:
    policy = opened(base, made, adapters_in_memory=2)
    folder = policy._adapters.folder
    assert folder is not None
    first = {name: actions(policy, 0, name) for name in ("one", "two")}
    assert folder.resident == ("one", "two")
    held = weakref.ref(folder.get("one"))
    actions(policy, 0, "two")
    actions(policy, 0, "three")
    gc.collect()
    assert folder.resident == ("two", "three")
    assert held() is None
    assert set(policy.adapters) == {"one", "two", "three"}
    np.testing.assert_array_equal(actions(policy, 0, "one"), first["one"])


def test_a_changed_folder_takes_the_old_ones_place_and_a_broken_one_does_not(base: Path, tmp_path: Path) -> None:
    policy = opened(base, tmp_path)
    folder = policy._adapters.folder
    assert folder is not None
    assert not policy.adapters
    make_adapter(tmp_path / "door", base, seed=1)
    folder.look()
    before, old = actions(policy, 0, "door"), policy.adapters["door"]

    make_adapter(tmp_path / "door", base, seed=2)
    (tmp_path / "door" / WEIGHTS).write_bytes(b"half of a file")
    folder.look()
    assert WEIGHTS in policy.refused_adapters["door"]
    np.testing.assert_array_equal(actions(policy, 0, "door"), before)

    make_adapter(tmp_path / "door", base, seed=2)
    folder.look()
    assert policy.adapters["door"] != old
    assert not policy.refused_adapters
    assert np.abs(actions(policy, 0, "door") - before).max() > 0.01

    shutil.rmtree(tmp_path / "door")
    folder.look()
    assert not policy.adapters
    actions(policy, 0, "door")  # one that was asked for before it went is still answered
    folder.look()
    assert folder.resident == ()
    with pytest.raises(ValueError, match="'door' is not served"):
        actions(policy, 0, "door")


def test_memory_stays_flat_over_a_hundred_swaps(base: Path, tmp_path: Path) -> None:
    versions = [make_adapter(tmp_path / "made" / str(seed), base, seed=seed) for seed in (1, 2)]
    policy = opened(base, tmp_path / "served")
    folder = policy._adapters.folder
    assert folder is not None
    seen, alive = set(), weakref.WeakSet()
    for swap in range(100):
        shutil.copytree(versions[swap % 2], tmp_path / "served" / "door", dirs_exist_ok=True)
        folder.look()
        actions(policy, 0, "door")
        alive.add(folder.get("door"))
        seen.add(policy.adapters["door"])
    gc.collect()
    assert len(seen) == 2
    assert len(alive) == 1


def test_the_folder_is_looked_at_by_itself_until_the_policy_goes(base: Path, tmp_path: Path) -> None:
    policy = opened(base, tmp_path, adapters_poll_s=0.02)
    watching = next(thread for thread in threading.enumerate() if thread.name == "adapters")
    make_adapter(tmp_path / "door", base, seed=1)
    end = time.monotonic() + 10
    while "door" not in policy.adapters:
        assert time.monotonic() < end
        time.sleep(0.01)
    del policy
    gc.collect()
    watching.join(10)
    assert not watching.is_alive()


def test_a_wrong_base_is_refused_with_both_named(base: Path, made: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=4)
    policy = opened(other, made)
    assert not policy.adapters
    assert set(policy.refused_adapters) == {"one", "two", "three"}
    own = opened(base, made).spec.content_hash
    assert own in policy.refused_adapters["one"]
    assert policy.spec.content_hash in policy.refused_adapters["one"]
    with pytest.raises(WrongBaseError):
        merge_adapter(made / "one", str(other), tmp_path / "merged")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def _facts(folder: Path, **changes: Any) -> None:
    path = folder / FACTS
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def _weights(folder: Path, name: str, value: np.ndarray) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, name: value}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / CONFIG).unlink(), CONFIG),
        (lambda folder: _config(folder, lora_alpha=99), f"{CONFIG} is not the one"),
        (lambda folder: _weights(folder, "more", np.zeros(1, np.float32)), f"{WEIGHTS} is not the one"),
        (lambda folder: _facts(folder, state={"mean": [0.0], "std": [0.0]}), "std must be above 0"),
        (lambda folder: _facts(folder, format="another"), "format"),
    ],
)
def test_damage_is_named(base: Path, made: Path, tmp_path: Path, damage: Any, says: str) -> None:
    shutil.copytree(made / "one", tmp_path / "one")
    damage(tmp_path / "one")
    policy = opened(base, tmp_path)
    assert not policy.adapters
    assert says in policy.refused_adapters.get("one", "")


def test_statistics_travel_with_the_adapter(base: Path, made: Path) -> None:
    policy = opened(base, made)
    chunk = policy.act([make_item(0, "three")])[0]
    np.testing.assert_allclose(chunk.actions, chunk.model_actions + 5.0, atol=1e-5)


def test_a_policy_without_a_folder_has_no_adapters(base: Path, made: Path) -> None:
    policy = FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(base), device="cpu"))
    assert policy.spec.adapters == "none"
    with pytest.raises(ValueError, match="this policy has none"):
        policy.act([make_item(0, "one")])
    assert opened(base, made).spec.adapters == "mixed"

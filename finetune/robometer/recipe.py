"""The embedded model's recipe, put together: data, tokenizer, network, two stages, and the checkpoint at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from finetune.rewards.collect import TRAINING_TASKS
from finetune.rewards.data import RewardFrames, load_reward_frames
from finetune.robometer.embedded import Sizes, make_config, make_tokenizer
from finetune.robometer.train import Material, TrainConfig, train
from finetune.robometer.vision import VisionConfig, all_features, train_vision
from models.robometer.checkpoint import RobometerSettings, save_checkpoint
from models.robometer.network import RobometerNetwork
from models.robometer.prompt import EMBEDDED_PROMPT
from models.robometer.sequence import Sequencer
from robot_client.robots.metaworld_tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from models.robometer.losses import Losses

CUTOFF = 0.95
"""Share of a rollout after which its task is done: a few frames are recorded after success."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where things are.

    Attributes:
        data: folder with one dataset a task (`python -m finetune.rewards collect`).
        work: folder of decoded frames, the vision run and the features, shared by all runs on this data.
        tasks: trained ones.
        sizes: the network's.
    """

    data: Path
    work: Path
    tasks: tuple[str, ...] = TRAINING_TASKS
    sizes: Sizes = field(default_factory=Sizes)

    def load(self, progress: Callable[[int, int], None] | None = None) -> RewardFrames:
        """Return the training episodes of the trained tasks."""
        folders = {name: self.data / name for name in self.tasks}
        cutoffs = dict.fromkeys(self.tasks, CUTOFF)
        return load_reward_frames(
            folders, self.sizes.image, self.work / "frames", cutoffs=cutoffs, split="train", progress=progress
        )

    def tokenizer(self) -> Any:
        """Train the tokenizer on the instructions of the trained tasks."""
        pieces = (EMBEDDED_PROMPT.progress_before, EMBEDDED_PROMPT.preference_before, EMBEDDED_PROMPT.frame)
        wordings = [wording for name in self.tasks for wording in find_task(name).training_instructions]
        return make_tokenizer([*wordings, *pieces, *map(str, range(100))], self.sizes)

    def vision(
        self, data: RewardFrames, config: VisionConfig, report: Callable[[int, float], None]
    ) -> RobometerNetwork:
        """Run stage one; its tower is kept in `work`."""
        torch.manual_seed(config.seed)
        network = RobometerNetwork(make_config(self.tokenizer(), self.sizes))
        train_vision(config, network, data, report=report)
        return network

    def tower(self) -> dict[str, Tensor]:
        """Return the weights of the trained vision tower.

        Raises:
            FileNotFoundError: stage one has not been run, or not to its end; features of half a tower would be kept.
        """
        kept = self.work / "vision"
        if not (kept / "state.safetensors").is_file():
            raise FileNotFoundError("vision tower: not trained yet; `python -m finetune.robometer vision` does it")
        state = load_file(kept / "state.safetensors")
        steps = json.loads((kept / "config.json").read_text("utf-8"))["steps"]
        if state["step"] < steps:
            raise FileNotFoundError(
                f"vision tower: trained for {int(state['step'])} of {steps} steps; `python -m finetune.robometer "
                "vision` goes on"
            )
        return {
            name.removeprefix("network/visual."): value
            for name, value in state.items()
            if name.startswith("network/visual.")
        }

    def seen(self, network: RobometerNetwork, data: RewardFrames) -> Material:
        """Put the trained tower into a network and return what stage two learns from; raises as `tower`."""
        network.model.visual.load_state_dict(self.tower())
        features = all_features(network, data, self.sizes, self.work / "features.npy")
        return Material(data=data, features=features, sequencer=Sequencer(self.tokenizer(), EMBEDDED_PROMPT))

    def run(self, config: TrainConfig, report: Callable[[int, Losses], None], *, model_id: str, revision: str) -> Path:
        """Run stage two and write the checkpoint into the run folder; returns its folder."""
        torch.manual_seed(config.seed)
        data = self.load()
        tokenizer = self.tokenizer()
        network = RobometerNetwork(make_config(tokenizer, self.sizes))
        material = self.seen(network, data)
        train(config, network, material, report=report)
        folder = config.out / "checkpoint"
        side = self.sizes.image
        settings = RobometerSettings(
            id=model_id, revision=revision, prompt=EMBEDDED_PROMPT, image_size=(side, side), max_frames=32
        )
        card = f"# {model_id}\n\nNot evaluated yet: `python -m finetune.robometer card`.\n"
        save_checkpoint(folder, settings, network, tokenizer, card=card, dtype=torch.float16)
        return folder

"""The embedded model's recipe, put together: data, frozen encoders, training, and the checkpoint at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finetune.rewards.collect import TRAINING_TASKS
from finetune.rewards.data import load_reward_frames
from finetune.rewind.features import TOWER, seen_by_dinov2, seen_by_tower
from finetune.rewind.train import Material, TrainConfig, train
from finetune.robometer.recipe import Recipe as RobometerRecipe
from models.rewind.checkpoint import RewindSettings, save_checkpoint
from models.rewind.encoders import TextSettings, load_text_encoder
from models.rewind.network import RewindNetwork, RewindSizes
from robot_client.robots.metaworld_tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.rewards.data import RewardFrames
    from finetune.rewind.features import SeenFrames

DINO_IMAGE = 224


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where things are.

    Attributes:
        data: folder with one dataset a task (`python -m finetune.rewards collect`).
        work: the embedded Robometer's work folder, for its decoded frames, its tower and the tower's features.
        tasks: trained ones.
        image: "robometer_tower", or the folder of a DINOv2.
        text: the sentence encoder, its folder absolute or a package's.
        sizes: the network's; the encoders decide the widths of what it reads.
    """

    data: Path
    work: Path
    tasks: tuple[str, ...] = TRAINING_TASKS
    image: str = TOWER
    text: TextSettings = field(default_factory=TextSettings)
    sizes: RewindSizes = field(default_factory=lambda: RewindSizes(width=192, feed_forward=768))

    def run(
        self,
        config: TrainConfig,
        report: Callable[[int, float], None],
        *,
        model_id: str,
        revision: str,
        decoding: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Train and write the checkpoint into the run folder; returns its folder.

        Args:
            decoding: told (episodes decoded, episodes in all).
        """
        data, seen = self._seen(decoding)
        text = load_text_encoder(self.text, self.work)
        wordings = {task.environment: task.training_instructions for task in map(find_task, self.tasks)}
        torch.manual_seed(config.seed)
        network = RewindNetwork(replace(self.sizes, image_width=seen.width, text_width=text.width))
        train(config, network, Material(data=data, seen=seen, text=text, wordings=wordings), report=report)
        folder = config.out / "checkpoint"
        settings = RewindSettings(
            id=model_id, revision=revision, image=seen.settings, text=self.text, frame_policy=config.sampler.policy
        )
        card = f"# {model_id}\n\nNot evaluated yet: `roboserve evaluate reward`.\n"
        save_checkpoint(folder, settings, network, card=card, dtype=torch.float16)
        seen.carry(folder)
        return folder

    def _seen(self, decoding: Callable[[int, int], None] | None) -> tuple[RewardFrames, SeenFrames]:
        if self.image == TOWER:
            shared = RobometerRecipe(data=self.data, work=self.work, tasks=self.tasks)
            data = shared.load(decoding)
            return data, seen_by_tower(shared, data)
        folders, cache = {name: self.data / name for name in self.tasks}, self.work / f"frames-{DINO_IMAGE}"
        cutoffs = dict.fromkeys(folders, 1.0)
        data = load_reward_frames(folders, DINO_IMAGE, cache, cutoffs=cutoffs, split="train", progress=decoding)
        return data, seen_by_dinov2(Path(self.image), data, cache)

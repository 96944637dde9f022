"""The embedded model's recipe, put together: data, tokenizer, network, three stages, and the folder at the end."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from finetune.rewards.collect import TRAINING_TASKS
from finetune.vlm.adapters import LoraSettings, add_lora, save_adapter
from finetune.vlm.augment import Jitter
from finetune.vlm.embedded import (
    PATH_PROMPT,
    PREFERENCE_PROMPT,
    STARTS_TURN,
    Sizes,
    make_config,
    make_tokenizer,
    number_ids,
    write_side_files,
)
from finetune.vlm.lessons import HINT_POINTS, PathLesson, PreferenceLesson
from finetune.vlm.material import load_frames
from finetune.vlm.pixels import PatchProcessor
from finetune.vlm.train import Hints, Lesson, Task, TrainConfig, train
from finetune.vlm.vision import VisionConfig, tower_of, train_vision
from finetune.vlm.words import all_texts
from models.robometer.network import fast_patches
from models.robometer.readout import to_dtype
from models.vlm.inputs import Composer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune.vlm.material import Frames

AdapterName = Literal["path", "preference"]
ADAPTERS: tuple[AdapterName, ...] = ("path", "preference")
_WAVES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Along the numbers from 0 to 99."""
_LOUD = 2.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where things are, and what is made.

    Attributes:
        data: what `collect` wrote; `work`: folder of the runs and, in `checkpoint`, of what comes of them.
        tasks: that are taught; `sizes`: the network's; `jitter`: how frames are changed.
    """

    data: Path
    work: Path
    tasks: tuple[str, ...] = TRAINING_TASKS
    sizes: Sizes = field(default_factory=Sizes)
    jitter: Jitter = field(default_factory=Jitter)

    @property
    def checkpoint(self) -> Path:
        """The folder that comes of it."""
        return self.work / "checkpoint"

    def frames(self) -> Frames:
        """Return the training frames; raises as `load_frames`."""
        return load_frames(self.data, self.tasks, "train")

    def tokenizer(self) -> Any:
        """Train the tokenizer on the words of the taught tasks and of the prompts."""
        if PREFERENCE_PROMPT.one_token is None:
            raise RuntimeError("prompt: lacks the one-token question")
        prompts = (PATH_PROMPT.template, PREFERENCE_PROMPT.one_token.template, f"{STARTS_TURN}system user assistant\n")
        return make_tokenizer([*all_texts(self.tasks), *prompts], self.sizes)

    def network(self, tokenizer: Any, seed: int) -> Any:
        """Return a fresh network."""
        from transformers import Qwen3VLForConditionalGeneration

        torch.manual_seed(seed)
        network: Any = Qwen3VLForConditionalGeneration(make_config(tokenizer, self.sizes))  # type: ignore[no-untyped-call]
        fast_patches(network.model.visual)
        _order_numbers(network.get_input_embeddings().weight, number_ids(tokenizer))
        return network

    def composer(self, tokenizer: Any) -> Composer:
        """Return what renders and tokenises conversations about frames that have the model's size."""
        return Composer(tokenizer, PatchProcessor(patch=self.sizes.patch, merge=2, temporal=2))

    def vision(self, config: VisionConfig, report: Callable[[int, float], None]) -> None:
        """Run stage one; its tower is kept in its run folder."""
        network = self.network(self.tokenizer(), config.seed)
        train_vision(config, network.model.visual, self.frames(), report=report)

    def base(
        self, config: TrainConfig, tower: Path, report: Callable[[int, dict[str, float]], None], *, model_id: str
    ) -> Path:
        """Run stage two, both lessons at once, and write the base's folder.

        Args:
            tower: run folder of stage one.

        Raises:
            FileNotFoundError: stage one saved nothing.
        """
        tokenizer = self.tokenizer()
        network = self.network(tokenizer, config.seed)
        network.model.visual.load_state_dict(tower_of(tower))
        frames = self.frames()
        lessons = (
            Lesson(name="path", source=PathLesson(frames, self.jitter), share=2.0),
            Lesson(name="preference", source=PreferenceLesson(frames, self.jitter)),
        )
        task = Task(
            network=network,
            composer=self.composer(tokenizer),
            lessons=lessons,
            numbers=number_ids(tokenizer),
            hints=Hints(self.sizes.width, answer=2 * HINT_POINTS),
            slow=("model.visual.",),
            identity={"jitter": asdict(self.jitter), "hints": HINT_POINTS, "tower": tower.name},
        )
        train(config, task, report=report)
        return self.write(network, tokenizer, model_id=model_id)

    def write(self, network: Any, tokenizer: Any, *, model_id: str, revision: str = "1") -> Path:
        """Write the base's folder, weights in float16."""
        folder = self.checkpoint
        write_side_files(folder, tokenizer, self.sizes, model_id=model_id, revision=revision)
        kept = copy.deepcopy(network)
        to_dtype(kept, torch.float16)
        kept.config.dtype = torch.float16
        kept.save_pretrained(folder)
        (folder / "README.md").write_text(
            f"# {model_id}\n\nNot evaluated yet: `python -m finetune.vlm card`.\n", "utf-8"
        )
        return folder

    def adapt(
        self,
        name: AdapterName,
        config: TrainConfig,
        lora: LoraSettings,
        report: Callable[[int, dict[str, float]], None],
    ) -> Path:
        """Train an adapter of the base on one lesson; returns its folder.

        Raises:
            FileNotFoundError: there is no base.
        """
        from models.vlm.checkpoint import load_checkpoint

        loaded = load_checkpoint(self.checkpoint)
        whole: Any = loaded.network
        fast_patches(whole.model.visual)
        torch.manual_seed(config.seed)
        network = add_lora(whole, lora)
        source = (PathLesson if name == "path" else PreferenceLesson)(self.frames(), self.jitter)
        task = Task(
            network=network,
            composer=self.composer(loaded.tokenizer),
            lessons=(Lesson(name=name, source=source),),
            numbers=number_ids(loaded.tokenizer),
            identity={"base": loaded.folder.content_hash, "lora": vars(lora), "jitter": asdict(self.jitter)},
        )
        train(config, task, report=report)
        return save_adapter(network, self.checkpoint / "adapters" / name, base=loaded.folder.id)


@torch.no_grad()
def _order_numbers(embeddings: torch.Tensor, numbers: tuple[int, ...]) -> None:
    """Let neighbouring numbers begin alike, in place: waves along the line of numbers, each in a direction of its own.

    What has to be said is then a few amplitudes, the long waves first, instead of one of a hundred unrelated vectors.
    """
    width = embeddings.shape[1]
    directions = torch.linalg.qr(torch.randn(width, min(width, 2 * len(_WAVES))))[0].T
    phases = torch.arange(len(numbers))[:, None] / len(numbers) * 2 * torch.pi * torch.tensor(_WAVES)[None]
    waves = torch.cat([phases.cos(), phases.sin()], dim=1)[:, : len(directions)] @ directions
    embeddings[list(numbers)] += waves * (_LOUD * embeddings.std() / waves.std())

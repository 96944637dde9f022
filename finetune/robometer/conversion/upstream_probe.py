"""Asks an upstream package for its prompts; run by that package's own Python, as a program: PROBE REQUEST ANSWER.

It stands alone (Python 3.9 or newer, nothing of ours), for it runs where only the package and what it needs are
installed. The package's own code renders the prompts; a processor that records what it is given stands in for the real
one, or stands before it.

REQUEST and ANSWER are JSON files; `finetune.robometer.conversion.upstream` writes the one and reads the other.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable  # noqa: UP035  Python 3.9 may run this

IMAGE = "<|image_pad|>"


class Refused(Exception):  # noqa: N818  it carries a code
    """Why there is no answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Seen(Exception):  # noqa: N818  no error
    """Ends the package's work once all that matters is recorded."""


class Recorder:
    """A processor as the package calls it: renders, tokenises, and keeps both.

    Where the environment can load the folder's own processor that one does the work; else the tokenizer with its chat
    template does, and an image takes one token for each block of patches.
    """

    def __init__(self, folder: Path, *, patch: int, merge: int) -> None:
        transformers = importlib.import_module("transformers")
        self._block = patch * merge
        self._real: Any = None
        self.image_processor: Any = SimpleNamespace(patch_size=patch, merge_size=merge)
        self.video_processor: Any = SimpleNamespace(patch_size=patch, merge_size=merge)
        if (folder / "preprocessor_config.json").is_file():
            try:
                self._real = transformers.AutoProcessor.from_pretrained(str(folder), padding_side="right")
            except (ImportError, OSError, ValueError):  # torchvision, as a rule, is not there
                self._real = None
        if self._real is not None:
            self.image_processor = self._real.image_processor
            self.video_processor = getattr(self._real, "video_processor", self.video_processor)
            self.tokenizer = self._real.tokenizer
        else:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), padding_side="right")
            _give_chat_template(self.tokenizer, folder)
        self.kind = "processor" if self._real is not None else "tokenizer and chat template"
        self.seen: Any = None

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render a conversation."""
        renderer = self._real if self._real is not None else self.tokenizer
        return renderer.apply_chat_template(conversation, **options)

    def __call__(self, *, text: list[str], images: Any = None, **options: Any) -> Any:
        """Tokenise, keep, and end the work."""
        flat = [image for part in images or () for image in (part if isinstance(part, (list, tuple)) else (part,))]
        sizes = [[image.size[1], image.size[0]] for image in flat]
        if self._real is not None:
            ids = self._real(text=text, images=images, **options)["input_ids"][0].tolist()
        else:
            ids = self._tokens(text[0], sizes)
        self.seen = {"text": text[0], "ids": ids, "images": sizes}
        raise Seen

    def _tokens(self, text: str, sizes: list[list[int]]) -> Any:
        pieces = text.split(IMAGE)
        if len(pieces) != len(sizes) + 1:
            raise Refused("interface", f"{len(pieces) - 1} images in the text, {len(sizes)} were given")
        shown = [IMAGE * ((height // self._block) * (width // self._block)) for height, width in sizes]
        whole = "".join(piece + image for piece, image in zip(pieces, [*shown, ""]))  # noqa: B905  Python 3.9
        return self.tokenizer(whole, add_special_tokens=False)["input_ids"]


def _give_chat_template(tokenizer: Any, folder: Path) -> None:
    if tokenizer.chat_template:
        return
    if (folder / "chat_template.jinja").is_file():
        tokenizer.chat_template = (folder / "chat_template.jinja").read_text("utf-8")
    elif (folder / "chat_template.json").is_file():
        tokenizer.chat_template = json.loads((folder / "chat_template.json").read_text("utf-8"))["chat_template"]
    else:
        raise Refused("folder", "the folder has no chat template (tokenizer_config.json, chat_template.jinja or .json)")


def robometer(
    recorder: Recorder, request: dict[str, Any], collators: Any, types: Any
) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return what asks the `robometer` package: its collator's two methods."""
    import numpy as np

    collator = collators.RBMBatchCollator(
        processor=recorder,
        tokenizer=recorder.tokenizer,
        base_model_id=request["base_model_id"],
        resized_height=None,
        resized_width=None,
        use_multi_image=True,
        prog_pref=request["progress_in_preference"],
        use_per_frame_progress_token=True,
        shuffle_progress_frames=False,
        inference=True,
    )

    def clip(task: str, shape: list[int]) -> Any:
        frames = np.zeros((*shape, 3), dtype=np.uint8)
        return types.Trajectory(frames=frames, frames_shape=frames.shape, task=task)

    def progress(ask: dict[str, Any]) -> Any:
        return collator._process_progress_batch([types.ProgressSample(trajectory=clip(ask["task"], ask["first"]))])  # noqa: SLF001  its only way in

    def preference(ask: dict[str, Any]) -> Any:
        pair = types.PreferenceSample(
            chosen_trajectory=clip(ask["task"], ask["first"]), rejected_trajectory=clip(ask["task"], ask["second"])
        )
        return collator._process_preference_batch([pair])  # noqa: SLF001  its only way in

    return {"progress": progress, "preference": preference}


def lerobot(recorder: Recorder, request: dict[str, Any], module: Any) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return what asks LeRobot's port, which has the progress prompt only."""
    import numpy as np

    module.AutoProcessor = SimpleNamespace(from_pretrained=lambda *_, **__: recorder)
    step = module.RobometerEncoderProcessorStep(
        base_model_id=request["folder"], max_frames=None, use_multi_image=True, use_per_frame_progress_token=True
    )

    def progress(ask: dict[str, Any]) -> Any:
        return step.encode_samples([(np.zeros((*ask["first"], 3), dtype=np.uint8), ask["task"])])

    return {"progress": progress}


PACKAGES: dict[str, Any] = {"robometer": robometer, "lerobot": lerobot}
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "robometer": {
        "robometer.data.collators.rbm_heads": ("RBMBatchCollator",),
        "robometer.data.dataset_types": ("Trajectory", "ProgressSample", "PreferenceSample"),
    },
    "lerobot": {
        "lerobot.rewards.robometer.processor_robometer": ("RobometerEncoderProcessorStep", "AutoProcessor"),
    },
}
"""What is used of each package."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the renderings of what is asked, as far as the package has such prompts.

    Raises:
        Refused: the package is not there, or is not as expected.
    """
    package = _package(request["packages"])
    try:
        modules = _modules(package)
        recorder = Recorder(Path(request["folder"]), patch=request["patch"], merge=request["merge"])
        asking = PACKAGES[package](recorder, request, *modules)
        found = [
            {**ask, **_recorded(recorder, asking[ask["kind"]], ask)} for ask in request["asks"] if ask["kind"] in asking
        ]
    except ImportError as error:
        raise Refused("import", f"{package} cannot be imported: {error}") from error
    except (AttributeError, TypeError, KeyError) as error:
        raise Refused("interface", f"{package} is not as expected: {type(error).__name__}: {error}") from error
    return {"package": package, "version": _version(package), "processor": recorder.kind, "renderings": found}


def _package(names: list[str]) -> str:
    for name in names:
        if importlib.util.find_spec(name) is not None:
            return name
    raise Refused("missing", f"neither of these is installed there: {', '.join(names)}")


def _modules(package: str) -> list[Any]:
    found = []
    for name, attributes in MODULES[package].items():
        module = importlib.import_module(name)
        missing = [attribute for attribute in attributes if not hasattr(module, attribute)]
        if missing:
            raise Refused("interface", f"{package} is not as expected: {name} has no {', '.join(missing)}")
        found.append(module)
    return found


def _recorded(recorder: Recorder, asking: Callable[[dict[str, Any]], Any], ask: dict[str, Any]) -> dict[str, Any]:
    recorder.seen = None
    with contextlib.suppress(Seen):
        asking(ask)
    if recorder.seen is None:
        raise Refused("interface", f"the {ask['kind']} prompt never reached the processor")
    return dict(recorder.seen)


def _version(package: str) -> str:
    metadata = importlib.import_module("importlib.metadata")
    try:
        return str(metadata.version(package))
    except metadata.PackageNotFoundError:
        return "a source tree"


def main() -> None:
    """Read the request, write the answer."""
    sys.path.pop(0)  # this file's own folder, whose modules are not meant for the package
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    try:
        told = answer(request)
    except Refused as refused:
        told = {"error": refused.code, "message": str(refused)}
    except Exception as error:  # noqa: BLE001  whatever the package raised is the answer
        told = {"error": "raised", "message": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(told), "utf-8")


if __name__ == "__main__":
    main()

"""Published weights made askable: layout by headers, and a prompt read off an upstream package, here a stand-in."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from finetune.robometer.conversion import upstream_probe
from finetune.robometer.conversion.convert import ConvertConfig, convert, identity
from finetune.robometer.conversion.derive import asks, check, derive
from finetune.robometer.conversion.published import inspect
from finetune.robometer.conversion.upstream import Request, read_answer
from finetune.robometer.embedded import Sizes, make_config, make_tokenizer
from models.rewards.contract import Pair, Query
from models.robometer.checkpoint import load_checkpoint
from models.robometer.network import RobometerNetwork
from models.robometer.reward import RobometerReward, load
from roboserve.cli import app

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = Sizes(image=64, vision_width=32, vision_layers=1, vision_heads=2, deepstack=(0,), width=64, layers=1, heads=2)
CHAT = (
    "{%- set pictures = namespace(seen=0) -%}{%- for turn in messages -%}<|im_start|>{{ turn.role }}\n"
    "{%- for part in turn.content -%}{%- if part.type == 'image' -%}{%- set pictures.seen = pictures.seen + 1 -%}"
    "{%- if add_vision_id -%}Image no. {{ pictures.seen }}> {% endif -%}"
    "<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}"
    "<|im_end|>\n{% endfor -%}"
)
TYPES = """
class Record:
    def __init__(self, **fields):
        self.__dict__.update(fields)

Trajectory = ProgressSample = PreferenceSample = Record
"""
PICTURES = """
from PIL import Image

def pictures(frames):
    def whole(side):
        return max(32, round(side / 32) * 32)
    return [Image.fromarray(frame).resize((whole(frame.shape[1]), whole(frame.shape[0]))) for frame in frames]

def content(frames):
    token = {"type": "text", "text": "<|prog_token|>"}
    return [part for picture in pictures(frames) for part in ({"type": "image", "image": picture}, token)]

def run(processor, parts):
    turns = [{"role": "user", "content": parts}]
    options = {"tokenize": False, "add_generation_prompt": False, "add_vision_id": True, "fps": 1}
    text = processor.apply_chat_template(turns, **options)
    seen = [part["image"] for part in parts if part["type"] == "image"]
    return processor(text=[text], images=seen, padding=True, do_resize=False)
"""
COLLATOR = """
print("a package may say what it likes")
from robometer.pictures import content, run

class RBMBatchCollator:
    def __init__(self, *, processor, base_model_id, use_multi_image, prog_pref, use_per_frame_progress_token,
                 inference, **others):
        assert use_multi_image and use_per_frame_progress_token and inference and "Qwen3" in base_model_id
        self.processor, self.prog_pref = processor, prog_pref

    def _process_progress_batch(self, samples):
        clip = samples[0].trajectory
        parts = [{"type": "text", "text": f"Job '{clip.task}'. Say how done each frame is, 2 digits."}]
        return run(self.processor, parts + content(clip.frames))

    def _process_preference_batch(self, samples):
        one, two = samples[0].chosen_trajectory, samples[0].rejected_trajectory
        words = f"Of two clips of '{one.task}', which is ahead?" + " Say progress too." * self.prog_pref
        parts = [{"type": "text", "text": words}, {"type": "text", "text": "Clip 1. "}]
        parts += content(one.frames) + [{"type": "text", "text": "<|split_token|>Clip 2. "}] + content(two.frames)
        return run(self.processor, parts + [{"type": "text", "text": "Choose.<|pref_token|>"}])
"""
PORT = """
from robometer.pictures import content, run
AutoProcessor = None

class RobometerEncoderProcessorStep:
    def __init__(self, *, base_model_id, max_frames, use_multi_image, use_per_frame_progress_token):
        self.processor = AutoProcessor.from_pretrained(base_model_id)

    def encode_samples(self, samples):
        frames, task = samples[0]
        return run(self.processor, [{"type": "text", "text": "Task {}.".format(task)}] + content(frames))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as the authors publish it: shards, their name for the architecture, their training recipe."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "models--robometer--Robometer-tiny" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(["say how done each frame is", "Image no. "], SIZES)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    network = RobometerNetwork(make_config(tokenizer, SIZES), bins=7).to(torch.bfloat16)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: weights[name] for name in own}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {**network.config.to_dict(), "architectures": ["RFM"]}
    (folder / "config.json").write_text(json.dumps(config))
    recipe = "data: {use_multi_image: true}\nmodel:\n  other: !!python/object:some.Thing {a: 1}\n"
    (folder / "config.yaml").write_text(recipe + "training: {predict_pref_progress: true}\n")
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A source tree with both packages, in words of our own."""
    root = tmp_path_factory.mktemp("packages")
    files = {
        "robometer/pictures.py": PICTURES,
        "robometer/data/dataset_types.py": TYPES,
        "robometer/data/collators/rbm_heads.py": COLLATOR,
        "lerobot/rewards/robometer/processor_robometer.py": PORT,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def converted(published, packages, tmp_path_factory):
    """That folder in another place, with the prompt of the stand-in for the authors' package."""
    out = tmp_path_factory.mktemp("made") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(packages))
        command = ["convert", "robometer", str(published), "--python", sys.executable, "--out", str(out)]
        ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    assert "none missing, none unexpected" in ended.output
    return out


def rendered(published, packages, package):
    """What a package renders, asked in this process: another one would load the same libraries again."""
    request = Request(
        folder=str(published),
        packages=(package,),
        base_model_id="Qwen/Qwen3-VL-4B-Instruct",
        progress_in_preference=False,
        patch=16,
        merge=2,
        asks=asks(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        told = upstream_probe.answer(json.loads(json.dumps(asdict(request))))
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    return read_answer(told).renderings


@pytest.fixture(scope="module")
def renderings(published, packages):
    return rendered(published, packages, "robometer")


def copied(published, tmp_path, **texts):
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_published_folder_becomes_one_that_answers(published, converted):
    assert not (published / "robometer.json").exists()
    model = load(converted)
    assert (model.spec.id, model.spec.revision, model.spec.image_size) == ("robometer/Robometer-tiny", COMMIT, None)
    checkpoint = load_checkpoint(converted)
    text = checkpoint.tokenizer.decode(checkpoint.sequencer.preference("shut 'it'", [(1, 1)], [(1, 1)]))
    picture = "<|vision_start|><|image_pad|><|vision_end|><|prog_token|>"
    assert text == (
        "<|im_start|>userOf two clips of 'shut 'it'', which is ahead? Say progress too.Clip 1. "
        f"Image no. 1> {picture}<|split_token|>Clip 2. Image no. 2> {picture}Choose.<|pref_token|><|im_end|>\n"
    )
    frame = model.prepare(np.zeros((50, 112, 3), np.uint8))
    seen = tuple(model.encode([frame, frame]))
    assert model.score([Query(instruction="x", frames=seen)])[0].progress.shape == (2,)
    assert len(model.compare([Pair(instruction="x", first=seen, second=seen)])) == 1


def test_lerobots_port_asks_for_progress_only(published, packages, converted, tmp_path):
    found = rendered(published, packages, "lerobot")
    template = derive(found)
    assert check(template, found, load_tokenizer(published), unit=32) == len(asks()) / 2
    assert template.progress_before.endswith("Task {task}.")
    folder = copied(converted, tmp_path)
    settings = json.loads((folder / "robometer.json").read_text())
    (folder / "robometer.json").write_text(json.dumps({**settings, "prompt": asdict(template)}))
    model = RobometerReward(RobometerReward.Config(checkpoint=str(folder), device="cpu"))
    seen = tuple(model.encode([model.prepare(np.zeros((64, 64, 3), np.uint8))]))
    assert model.score([Query(instruction="x", frames=seen)])[0].progress.shape == (1,)
    assert not model.spec.supports_compare
    with pytest.raises(NotImplementedError, match="progress only"):
        model.compare([Pair(instruction="x", first=seen, second=seen)])


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "neither of these is installed"),
        ({"robometer/data/collators/rbm_heads.py": "import no_such_module"}, "cannot be imported: No module named"),
        ({"robometer/data/collators/rbm_heads.py": "", "robometer/data/dataset_types.py": ""}, "not as expected"),
    ],
)
def test_a_package_that_is_not_there_or_not_as_expected_is_named(published, tmp_path, monkeypatch, files, told):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = ["convert", "robometer", str(published), "--package", "robometer", "--revision", "1"]
    ended = CliRunner().invoke(app, [*command, "--python", sys.executable])
    assert ended.exit_code == 1
    assert told in " ".join(ended.output.split())


def test_no_interpreter_no_revision_and_another_way_of_reading_are_refused(published, tmp_path):
    config = ConvertConfig(folder=published, python=tmp_path / "python", revision="1")
    with pytest.raises(FileNotFoundError, match="no interpreter"):
        convert(config)
    other = copied(published, tmp_path, config__yaml="data: {use_multi_image: false}")
    with pytest.raises(ValueError, match="revision: not known"):
        convert(replace(config, folder=other, revision=None))
    with pytest.raises(ValueError, match=r"data\.use_multi_image is False, must be True"):
        convert(replace(config, folder=other, python=Path(sys.executable)))


def test_the_template_gives_every_rendering_back(published, renderings):
    tokenizer = load_tokenizer(published)
    template = derive(renderings)
    assert check(template, renderings, tokenizer, unit=32) == len(asks()) == len(renderings)
    assert template.frame == "Image no. {number}> <|vision_start|>{image}<|vision_end|><|prog_token|>"
    assert "Say progress" not in template.preference_before
    one = renderings[0]
    with pytest.raises(ValueError, match="token ids: the progress prompt of 2 frames differs at token 3 of"):
        check(template, [replace(one, ids=(*one.ids[:3], 0, *one.ids[4:]))], tokenizer, unit=32)
    with pytest.raises(ValueError, match=r"resized to \(96, 96\), here to \(64, 96\)"):
        check(template, [replace(one, images=((96, 96), *one.images[1:]))], tokenizer, unit=32)
    with pytest.raises(ValueError, match="differs from what the template gives at character"):
        check(template, [replace(one, text=one.text.replace("Job", "Job:"))], tokenizer, unit=32)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("move the blue cup", "move a cup"), "the task stands in it 0 times"),
        (lambda text: text.replace("no. 3", "no. three"), "not by their number"),
        (lambda text: text.replace("<|prog_token|>", ""), "no <|prog_token|> after an image"),
        (lambda text: text.replace("<|image_pad|>", "", 1), "images in a prompt that shows"),
    ],
)
def test_prompts_that_no_template_can_say_are_refused(renderings, change, told):
    with pytest.raises(ValueError, match=told.replace("|", r"\|")):
        derive([replace(one, text=change(one.text)) for one in renderings])


def without_pooling(weights):
    del weights["frame_pool_attn.weight"]


def with_a_head_too_many(weights):
    weights["similarity_head.0.weight"] = torch.zeros(1)


def with_a_smaller_head(weights):
    weights["success_head.0.weight"] = weights["success_head.0.weight"][:, :8].contiguous()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_pooling, r"1 missing: frame_pool_attn\.weight"),
        (with_a_head_too_many, r"1 unexpected: similarity_head\.0\.weight"),
        (with_a_smaller_head, r"1 of another shape: success_head\.0\.weight \(32x8, must be 32x64\)"),
    ],
)
def test_weights_that_do_not_fit_are_told_apart_by_their_headers(published, tmp_path, change, told):
    folder = copied(published, tmp_path)
    weights = {name: value for shard in folder.glob("*.safetensors") for name, value in load_file(shard).items()}
    for shard in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        shard.unlink()
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=told):
        inspect(folder)


def test_headers_say_what_the_weights_are(published):
    found = inspect(published)
    assert found.bins == 7
    assert found.dtypes == ("BF16",)
    assert found.parameters * 2 < found.bytes < found.parameters * 2 + 50_000
    assert found.vocabulary == len(load_tokenizer(published))


def test_a_tokenizer_of_another_size_or_order_is_refused(published, tmp_path):
    folder = copied(published, tmp_path)
    tokenizer = load_tokenizer(published)
    tokenizer.add_tokens(["<|one_more|>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"{len(tokenizer) - 1} embeddings for a tokenizer of {len(tokenizer)} tokens"):
        inspect(folder)
    raw = json.loads((published / "tokenizer.json").read_text())
    swapped = {"<|prog_token|>": "<|pref_token|>", "<|pref_token|>": "<|prog_token|>"}
    for token in raw["added_tokens"]:
        token["content"] = swapped.get(token["content"], token["content"])
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"its last tokens are .*, must be"):
        inspect(folder)


def test_a_hub_download_notes_its_commit(published, tmp_path):
    folder = copied(published, tmp_path)
    notes = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    notes.parent.mkdir(parents=True)
    notes.write_text(f"{COMMIT[::-1]}\nan etag\n1.0\n")
    assert identity(ConvertConfig(folder=folder, python=Path(sys.executable))) == ("copy", COMMIT[::-1])


def load_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)

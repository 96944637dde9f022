"""What the field uses for low-rank finetuning of vision-language-action models, each with where it is said.

Those for models that are not carried here stand as data: their targets name those models' layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Targets = str | tuple[str, ...]
Initial = Literal["kaiming", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of an adapter and its training.

    Attributes:
        model: that it is for.
        targets: "all-linear", a regular expression of whole names, or ends of names.
        rank: r; `alpha`: the change is scaled by alpha / r, or by alpha / sqrt(r) where `stabilised` (rsLoRA, arXiv
            2312.03732).
        initial: of A; B is zero, so that the adapter changes nothing at the start.
        heads: modules that are trained whole.
        learning_rate: peak; `batch`: of a step; None where the source says none.
        source: where it is said; `note`: what else is.
    """

    model: str
    targets: Targets
    rank: int
    alpha: int
    stabilised: bool = False
    dropout: float = 0.0
    initial: Initial = "kaiming"
    heads: tuple[str, ...] = ()
    learning_rate: float | None = None
    batch: int | None = None
    source: str
    note: str = ""


_LANGUAGE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

PRESETS: Mapping[str, Preset] = {
    "embedded": Preset(
        model="metaworld-flow, other flow VLAs and policies on states of this project",
        targets="all-linear",
        rank=8,
        alpha=16,
        learning_rate=1e-3,
        batch=64,
        source="this project",
        note="convolutions are left out: only linear layers can differ within a batch",
    ),
    "openvla": Preset(
        model="OpenVLA-7B",
        targets="all-linear",
        rank=32,
        alpha=16,
        initial="gaussian",
        learning_rate=5e-4,
        batch=16,
        source="openvla: vla-scripts/finetune.py",
        note="alpha is min(r, 16); the rate is constant; the adapter is merged into the base",
    ),
    "openvla-oft": Preset(
        model="OpenVLA-OFT",
        targets="all-linear",
        rank=32,
        alpha=16,
        initial="gaussian",
        heads=("action_head", "proprio_projector"),
        learning_rate=5e-4,
        batch=8,
        source="openvla-oft: vla-scripts/finetune.py",
        note="chunks of 8, L1 head; a tenth of the rate from step 100,000 of 150,000",
    ),
    "pi0-openpi-vlm": Preset(
        model="pi0, the VLM (openpi)",
        targets=r"(?!.*expert).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        rank=16,
        alpha=16,
        source="openpi: models/gemma.py, gemma_2b_lora",
        note="openpi starts both factors from a normal of 0.01, so its start is not exactly the base",
    ),
    "pi0-openpi-expert": Preset(
        model="pi0, the action expert (openpi)",
        targets=r".*expert.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        rank=32,
        alpha=32,
        source="openpi: models/gemma.py, gemma_300m_lora",
    ),
    "pi0-lerobot": Preset(
        model="pi0 and pi0.5 (LeRobot)",
        targets=r".*(gemma_expert.*\.self_attn\.(q|v)_proj|\.(state_proj|action_in_proj|action_out_proj))",
        rank=16,
        alpha=8,
        source="lerobot: policies/pi0, its targets for PEFT",
        note="alpha is PEFT's default",
    ),
    "smolvla": Preset(
        model="SmolVLA 450M (LeRobot)",
        targets=r".*(lm_expert.*\.(q|v)_proj"
        r"|\.(state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out))",
        rank=64,
        alpha=64,
        learning_rate=1e-3,
        batch=32,
        source="lerobot: its guide to PEFT",
        note="ten times the rate of full finetuning, falling to 1e-4",
    ),
    "gr00t": Preset(
        model="GR00T N1",
        targets=r".*action_head.*\.(to_q|to_k|to_v|to_out\.0)",
        rank=64,
        alpha=128,
        learning_rate=1e-4,
        batch=16,
        source="NVIDIA's notes on gr00t_finetune.py",
        note="adapters are off by default there",
    ),
    "vlm-language": Preset(
        model="language models of vision-language models",
        targets=_LANGUAGE,
        rank=16,
        alpha=32,
        source="the common choice; the vision tower stays as it is unless what is new is visual",
        note="`python -m finetune.vlm finetune` trains these",
    ),
}


def preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]

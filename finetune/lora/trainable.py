"""Which weights of a network a run trains: an adapter's, of a whole or a four-bit base, its heads', or all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from finetune.lora.presets import Initial, Targets

Method = Literal["lora", "qlora", "heads", "full"]
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Of an adapter; see `presets.Preset`."""

    targets: Targets = ALL_LINEAR
    rank: int = 8
    alpha: int = 16
    stabilised: bool = False
    dropout: float = 0.0
    initial: Initial = "kaiming"
    heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.rank, self.alpha) < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"lora: rank {self.rank} and alpha {self.alpha} from 1, dropout {self.dropout} below 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainable:
    """A network made ready; `peft` is PEFT's wrapper of it where the method makes an adapter."""

    network: nn.Module
    peft: Any
    trained: int
    total: int

    @property
    def share(self) -> float:
        """Trained weights over the base's, 0 to 1 (and above 1 for an adapter larger than its base)."""
        return self.trained / self.total


def make_trainable(network: nn.Module, method: Method, settings: LoraSettings) -> Trainable:
    """Freeze what the method does not train, and add what it trains beside; in place.

    Raises:
        ValueError: targets or heads match nothing, or the method needs something that is missing here.
    """
    total = sum(value.numel() for value in network.parameters())
    wrapped: Any = None
    network.requires_grad_(requires_grad=method == "full")
    if method == "heads":
        if not settings.heads:
            raise ValueError("heads: none given, and method 'heads' trains nothing else")
        for name in linear_heads(network, settings.heads):
            network.get_submodule(name).requires_grad_(requires_grad=True)
    elif method != "full":
        names = matching(network, settings.targets, besides=linear_heads(network, settings.heads))
        if method == "qlora":
            require_four_bits()
            to_four_bits(network, names)
        wrapped = _with_adapter(network, settings, names)
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    return Trainable(network=network, peft=wrapped, trained=trained, total=total)


def matching(network: nn.Module, targets: Targets, *, besides: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the whole names of the linear layers that targets mean, sorted.

    Args:
        besides: layers that are not to be among those of "all-linear".

    Raises:
        ValueError: a target matches nothing, or something that is no linear layer or is trained whole.
    """
    kinds = {name: isinstance(module, nn.Linear) for name, module in network.named_modules() if name}
    if targets == ALL_LINEAR:
        return tuple(sorted(name for name, linear in kinds.items() if linear and name not in besides))
    if isinstance(targets, str):
        found = {targets: [name for name in kinds if re.fullmatch(targets, name)]}
    else:
        found = {end: [name for name in kinds if name == end or name.endswith(f".{end}")] for end in targets}
    missing = [target for target, names in found.items() if not names]
    if missing or not found:
        layers = ", ".join(name for name, linear in kinds.items() if linear)
        raise ValueError(f"targets: {', '.join(missing) or 'none'} match nothing; the linear layers are {layers}")
    names = sorted({name for own in found.values() for name in own})
    unfit = [name for name in names if not kinds[name] or name in besides]
    if unfit:
        raise ValueError(f"targets: {', '.join(unfit)} are no linear layers, or are trained whole")
    return tuple(names)


def linear_heads(network: nn.Module, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of heads, after checking that they are linear layers of the network.

    Raises:
        ValueError: naming the one that is none.
    """
    linear = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name in heads:
        if name not in linear:
            raise ValueError(f"heads: {name!r} is no linear layer; those are {', '.join(sorted(linear))}")
    return heads


def require_four_bits() -> None:
    """Check that a base can be held in four bits here.

    Raises:
        ValueError: bitsandbytes or a GPU is missing.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError("method: 'qlora' needs bitsandbytes; install roboserve[vlm], or use 'lora'") from error
    if not torch.cuda.is_available():
        raise ValueError("method: 'qlora' needs a CUDA GPU, and this machine has none; use 'lora'")


def to_four_bits(network: nn.Module, names: tuple[str, ...]) -> None:
    """Replace linear layers by NF4 ones in place, which dequantise to compute (QLoRA, arXiv 2305.14314).

    They are quantised when they are moved to their device.
    """
    import bitsandbytes

    library: Any = bitsandbytes.nn
    for name in names:
        layer = network.get_submodule(name)
        made = library.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            quant_type="nf4",
        )
        made.load_state_dict(layer.state_dict())
        made.requires_grad_(requires_grad=False)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, made)
    marked: Any = network
    marked.is_loaded_in_4bit = True  # PEFT asks for it


def _with_adapter(network: nn.Module, settings: LoraSettings, names: tuple[str, ...]) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.stabilised,
        init_lora_weights="gaussian" if settings.initial == "gaussian" else True,
        target_modules=list(names),
        modules_to_save=list(settings.heads) or None,
    )
    made: Any = get_peft_model
    return made(network, config)

"""A run's trained weights and moments as plain whole tensors, whichever way accelerate spread them.

One form for one process, DDP and FSDP: what is saved on eight GPUs can be read on a laptop. Frozen weights are the
base's and are not saved again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

WEIGHTS, MOMENTS = "weights/", "moments/"


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name, on the CPU; every process must call it, the first one gets them."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights: Any = get_model_state_dict(model, options=options)
    return dict(weights)


def gather(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return weights and moments under flat names; as for `gather_weights`."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    moments: Any = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})
    flat = {f"{WEIGHTS}{name}": value for name, value in gather_weights(model).items()}
    for name, values in moments.items():
        flat |= {f"{MOMENTS}{name}/{kind}": value for kind, value in values.items()}
    return flat


def spread(model: nn.Module, optimizer: Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put back what `gather` gave, in place; every process must call it with the same tensors."""
    weights: Any = {name.removeprefix(WEIGHTS): value for name, value in flat.items() if name.startswith(WEIGHTS)}
    moments: Any = {}
    for key, value in flat.items():
        if key.startswith(MOMENTS):
            name, _, kind = key.removeprefix(MOMENTS).rpartition("/")
            moments.setdefault(name, {})[kind] = value
    # Of whole states all but the first process get nothing, so the groups come from each one's own part.
    own = StateDictOptions(ignore_frozen_params=True)
    now: Any = get_optimizer_state_dict(model, optimizer, options=own)
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
    set_model_state_dict(model, weights, options=options)
    set_optimizer_state_dict(model, optimizer, {**now, "state": moments}, options=options)

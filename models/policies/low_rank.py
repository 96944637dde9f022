"""One forward of one base for items with different adapters: y_i = W x_i + B_i A_i x_i.

The base's product W x is one for the whole batch. The small products are batched matrix products over the items' own A
and B, padded with zeros to the largest rank among them: their number depends on the layers, not on how many adapters
ride in the batch (the idea of Punica, arXiv 2310.18547, and S-LoRA, arXiv 2311.03285, without their kernels). A batch
whose items share one adapter reads it in place.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from models.policies.adapters import require_fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from models.policies.adapters import AdapterFacts, PolicyAdapter


class Change(NamedTuple):
    """What is added to a layer's output: x `down` (in, r), then `up` (r, out), then `bias` (out,) where there is one.

    With a first dimension of items where they differ.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedAdapter:
    """An adapter ready for one network: `changes` by the layer's name, in the network's dtype and on its device."""

    facts: AdapterFacts
    content_hash: str
    changes: Mapping[str, Change]


class LowRankMixer:
    """Adds each item's own adapter to a network's linear layers, while `mixing` says whose.

    Args:
        network: gets a hook on every linear layer, and is not changed otherwise. The first dimension of what a layer
            sees must be the items', each repeated equally often in a row.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
        self._mix: dict[str, Change] = {}
        self._items = 0
        for name, layer in self._layers.items():
            layer.register_forward_hook(partial(self._add, name))

    def fit(self, adapter: PolicyAdapter) -> FittedAdapter:
        """Make an adapter ready.

        Raises:
            ValueError: see `require_fit`; or it replaces parameters of something else than a linear layer.
        """
        require_fit(adapter, self._network)
        changes = {name: Change(a.T, b.T) for name, (a, b) in adapter.layers.items()}
        for owner in sorted({name.rpartition(".")[0] for name in adapter.heads}):
            if owner not in self._layers or owner in changes:
                raise ValueError(f"adapter: {owner} is no linear layer of its own; merge the adapter to serve it")
            changes[owner] = _whole(self._layers[owner], owner, adapter.heads)
        return FittedAdapter(
            facts=adapter.facts,
            content_hash=adapter.content_hash,
            changes={name: self._placed(name, change) for name, change in changes.items()},
        )

    @contextmanager
    def mixing(self, adapters: Sequence[FittedAdapter | None]) -> Iterator[None]:
        """Let the forwards of the block be of items with these adapters; None is the base."""
        self._items, self._mix = len(adapters), _mix(adapters)
        try:
            yield
        finally:
            self._mix = {}

    def _placed(self, name: str, change: Change) -> Change:
        weight = self._layers[name].weight
        bias = None if change.bias is None else change.bias.to(weight)
        return Change(change.down.to(weight).contiguous(), change.up.to(weight).contiguous(), bias)

    def _add(self, name: str, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        change = self._mix.get(name)
        if change is None:
            return None
        seen = inputs[0].reshape(self._items, -1, inputs[0].shape[-1])
        if change.down.dim() == 2:
            added = (seen @ change.down) @ change.up
        else:
            added = torch.bmm(torch.bmm(seen, change.down), change.up)
        if change.bias is not None:
            added = added + change.bias.reshape(-1, 1, change.bias.shape[-1])
        return output + added.reshape(output.shape)


def _whole(layer: nn.Linear, owner: str, heads: Mapping[str, Tensor]) -> Change:
    """Return a replaced layer as a change of the base's, x (W' - W)^T + (b' - b), in the form of one of full rank."""
    weight, bias = heads.get(f"{owner}.weight"), heads.get(f"{owner}.bias")
    own = layer.weight.detach().float().cpu()
    difference = torch.zeros_like(own) if weight is None else weight - own
    shift = None if bias is None else bias - layer.bias.detach().float().cpu()
    inputs = difference.shape[1]
    if inputs <= difference.shape[0]:
        return Change(torch.eye(inputs), difference.T, shift)
    return Change(difference.T, torch.eye(len(difference)), shift)


def _mix(adapters: Sequence[FittedAdapter | None]) -> dict[str, Change]:
    first = adapters[0]
    if all(one is first for one in adapters):
        return {} if first is None else dict(first.changes)
    names = {name for one in adapters if one is not None for name in one.changes}
    return {name: _stacked([None if one is None else one.changes.get(name) for one in adapters]) for name in names}


def _stacked(changes: Sequence[Change | None]) -> Change:
    """Return the items' changes of one layer with a first dimension of items, zeros where an item has none."""
    model = next(change for change in changes if change is not None)
    rank = max(change.down.shape[1] for change in changes if change is not None)
    down = model.down.new_zeros(len(changes), model.down.shape[0], rank)
    up = model.up.new_zeros(len(changes), rank, model.up.shape[1])
    biased = any(change is not None and change.bias is not None for change in changes)
    bias = model.up.new_zeros(len(changes), model.up.shape[1]) if biased else None
    for index, change in enumerate(changes):
        if change is None:
            continue
        own = change.down.shape[1]
        down[index, :, :own], up[index, :own] = change.down, change.up
        if bias is not None and change.bias is not None:
            bias[index] = change.bias
    return Change(down, up, bias)

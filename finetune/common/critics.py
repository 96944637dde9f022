"""An ensemble of critics as one network: every layer of all heads is one batched product."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_ACTIVATIONS = {"mish": functional.mish, "relu": functional.relu}


class CriticEnsemble(nn.Module):
    """M perceptrons with LayerNorm before each activation, independently initialised, that share nothing but the input.

    Args:
        inputs: numbers of an input, a state and what is done there.
        heads: M. `hidden`, `layers`: width and number of the hidden layers.
        activation: of the hidden layers.

    Raises:
        ValueError: a size is below 1, or there is no such activation.
    """

    def __init__(
        self,
        inputs: int,
        *,
        heads: int,
        hidden: int = 256,
        layers: int = 3,
        activation: Literal["mish", "relu"] = "mish",
    ) -> None:
        super().__init__()
        if min(inputs, heads, hidden, layers) < 1:
            raise ValueError(f"inputs, heads, hidden, layers: {inputs}, {heads}, {hidden}, {layers}, must be 1 or more")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: {activation!r}, must be one of {', '.join(_ACTIVATIONS)}")
        self.heads, self.activation = heads, activation
        self._activate = _ACTIVATIONS[activation]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.gains, self.offsets = nn.ParameterList(), nn.ParameterList()
        for read, written in zip([inputs, *[hidden] * layers], [*[hidden] * layers, 1], strict=True):
            bound = 1 / math.sqrt(read)
            self.weights.append(torch.empty(heads, read, written).uniform_(-bound, bound))
            self.biases.append(torch.empty(heads, 1, written).uniform_(-bound, bound))
        for _ in range(layers):
            self.gains.append(torch.ones(heads, 1, hidden))
            self.offsets.append(torch.zeros(heads, 1, hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the heads' values (M, B) of inputs (B, inputs)."""
        hidden = inputs.expand(self.heads, *inputs.shape)
        for weight, bias, gain, offset in zip(self.weights, self.biases, self.gains, self.offsets, strict=False):
            hidden = torch.baddbmm(bias, hidden, weight)
            normal = functional.layer_norm(hidden, hidden.shape[-1:])
            hidden = self._activate(torch.addcmul(offset, normal, gain))
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1]).squeeze(-1)

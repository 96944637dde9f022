"""An ensemble of critics as a reader would write it: a network for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from finetune.common.critics import CriticEnsemble

_ACTIVATIONS = {"mish": nn.Mish, "relu": nn.ReLU}


def separate(ensemble: CriticEnsemble) -> list[nn.Module]:
    """Return an ensemble's heads as perceptrons of their own, with the same weights."""
    heads: list[nn.Module] = []
    for head in range(ensemble.heads):
        layers: list[nn.Module] = []
        for depth, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
            linear = nn.Linear(weight.shape[1], weight.shape[2])
            linear.load_state_dict({"weight": weight[head].T, "bias": bias[head, 0]})
            layers.append(linear)
            if depth < len(ensemble.gains):
                norm = nn.LayerNorm(weight.shape[2])
                gain, offset = ensemble.gains[depth][head, 0], ensemble.offsets[depth][head, 0]
                norm.load_state_dict({"weight": gain, "bias": offset})
                layers += [norm, _ACTIVATIONS[ensemble.activation]()]
        heads.append(nn.Sequential(*layers))
    return heads

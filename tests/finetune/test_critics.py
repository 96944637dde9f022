from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.common.critics import CriticEnsemble


def test_each_head_is_the_perceptron_that_its_weights_make() -> None:
    ensemble = CriticEnsemble(6, heads=3, hidden=16, layers=2, activation="relu")
    inputs = torch.randn(10, 6)
    values = ensemble(inputs)
    for head in range(3):
        layers: list[nn.Module] = []
        for depth, (read, written) in enumerate(((6, 16), (16, 16), (16, 1))):
            linear = nn.Linear(read, written)
            linear.weight.data = ensemble.weights[depth][head].T
            linear.bias.data = ensemble.biases[depth][head, 0]
            layers += [linear, nn.LayerNorm(16), nn.ReLU()]
        assert torch.allclose(values[head], nn.Sequential(*layers[:-2])(inputs).squeeze(-1), atol=1e-5)
    assert values.std(dim=0).min() > 0


def test_what_one_head_learns_the_others_do_not() -> None:
    ensemble = CriticEnsemble(4, heads=2, hidden=8, layers=1)
    ensemble(torch.randn(5, 4))[0].sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


def test_an_ensemble_without_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="heads, hidden, layers: 4, 0, 256, 3"):
        CriticEnsemble(4, heads=0)

"""The language model in eight or four bits, by bitsandbytes: less memory for small changes of the values.

Only the linear layers of the language model are replaced, where nearly all of the weights are; the vision tower, the
embeddings and the heads stay as they are. How far values move is measured by `models.rewards.drift`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

if TYPE_CHECKING:
    import torch

    from models.robometer.network import RobometerNetwork

Quantization = Literal["int8", "nf4"]
OUTLIER = 6.0
"""Activations beyond this are multiplied outside of int8 (LLM.int8(), arXiv 2208.07339). A column is taken out for a
whole batch, so values depend a little on what else rides in it, about as much as quantisation itself moves them."""


def quantize(network: RobometerNetwork, kind: Quantization, device: torch.device) -> None:
    """Replace the language model's linear layers in place, one after the other; the new ones are on `device`.

    "int8" is LLM.int8(); "nf4" is QLoRA's four-bit type with its constants quantised once more (arXiv 2305.14314).

    Raises:
        ImportError: bitsandbytes is not installed; the message names the extra.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(f"quantization: {kind} needs bitsandbytes; install roboserve[vlm]") from error

    # It would say at every layer of every forward that int8 products round their inputs to float16 first.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    language = network.model.language_model
    for name, layer in list(language.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            made = _int8(bitsandbytes.nn, layer) if kind == "int8" else _nf4(bitsandbytes.nn, layer)
            setattr(language.get_submodule(parent), own, made.to(device))


def _int8(library: Any, layer: nn.Linear) -> nn.Module:
    made: nn.Module = library.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=OUTLIER,
        device="meta",
    )
    weight = library.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    return _filled(made, layer, weight)


def _nf4(library: Any, layer: nn.Linear) -> nn.Module:
    made: nn.Module = library.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    weight = library.Params4bit(
        layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
    )
    return _filled(made, layer, weight)


def _filled(made: nn.Module, layer: nn.Linear, weight: nn.Parameter) -> nn.Module:
    made.weight = weight
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return made

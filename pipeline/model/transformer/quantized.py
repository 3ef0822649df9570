"""Weights in fp8: the linear layers of the blocks' attention and feed-forward, through torchao.

Each row of a weight is rounded to 8 bits (e4m3) with a scale of its own, when the checkpoint is
loaded. On a GPU each row of a layer's input is rounded so too, at each call, and the product is one
of 8-bit values. torchao has no such product for a CPU: there the weights are 8 bits wide and the
product is one of the model's precision. What modulates the tokens (the blocks' `norm1` and `norm2`)
stays as it is: one row of input gains nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.imports import large_imports

NEEDED = (0, 18)
"""The first version of torchao whose configurations are these."""
CAPABILITY = (8, 9)
"""Of the first GPUs that multiply 8-bit floats."""
INSTALL = "`pip install 'retake[fp8]'` installs it, on every node"


def check_fp8(dtype: torch.dtype, device: torch.device | str) -> None:
    """Whether weights in fp8 can be had, before any are read.

    Raises:
        ValueError: torchao is missing or too old, or the device or the precision has no such
            product.
    """
    _torchao()
    place = torch.device(device)
    if place.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(place)
    if capability < CAPABILITY:
        name = torch.cuda.get_device_name(place)
        raise ValueError(
            f"speed.weights is fp8, and {name} has capability {_dotted(capability)}; 8-bit floats "
            f"are multiplied from {_dotted(CAPABILITY)} on (L4, L40S, RTX 40, H100 and later). Set "
            "speed.weights to native"
        )
    if dtype != torch.bfloat16:
        raise ValueError(
            f"speed.weights is fp8, and the precision is {str(dtype).removeprefix('torch.')}; on a "
            "GPU torchao multiplies 8-bit floats to bf16 only. Set precision to bf16, or "
            "speed.weights to native"
        )


def quantize_blocks(transformer: Any, device: torch.device | str) -> None:
    """Round the weights of the blocks' linear layers, in place, and move the blocks to a device.

    One block after the other, so that the device never holds more than one in full width.

    Args:
        transformer: a `CogVideoXTransformer3DModel`, on the CPU perhaps.
    """
    quantization = _torchao()
    if torch.device(device).type == "cuda":
        config = quantization.Float8DynamicActivationFloat8WeightConfig(
            granularity=quantization.PerRow(),
            set_inductor_config=False,  # which is the whole process'
        )
    else:
        config = quantization.Float8WeightOnlyConfig(set_inductor_config=False)
    for block in transformer.transformer_blocks:
        block.to(device)
        for part in (block.attn1, block.ff):
            quantization.quantize_(part, config)


def _torchao() -> Any:
    """`torchao.quantization`."""
    try:
        with large_imports():
            import torchao
            from torchao import quantization
    except ImportError as error:
        raise ValueError(
            f"speed.weights is fp8, which needs torchao ({error}): {INSTALL}; or set "
            "speed.weights to native"
        ) from error
    found = str(torchao.__version__)
    if tuple(int(x) for x in found.split(".")[:2] if x.isdigit()) < NEEDED:
        raise ValueError(
            f"speed.weights is fp8, which needs torchao {_dotted(NEEDED)} or later, and {found} is "
            f"installed: {INSTALL}; or set speed.weights to native"
        )
    return quantization


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(str(number) for number in version)

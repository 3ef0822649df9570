"""What torchao makes of weights: tests that `test_quantized.py` runs in a process that finds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.model.checkpoint import load_transformer, open_checkpoint
from pipeline.model.footprint import weight_bytes
from pipeline.settings import Speed
from tests.benchmarks.test_gpu import tiny_bench
from tests.small_models import write_checkpoint


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("small") / "5b", "5b"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transformer_with_fp8_weights_takes_the_bytes_that_were_planned(
    info: Any, dtype: torch.dtype
) -> None:
    transformer = load_transformer(info, dtype, "cpu", "fp8")
    stored = 0
    for weight in [*transformer.parameters(), *transformer.buffers()]:
        parts = [weight.qdata, weight.scale] if hasattr(weight, "qdata") else [weight]
        stored += sum(part.nbytes for part in parts)
    assert stored == weight_bytes(info, "transformer", dtype.itemsize, "fp8")


def test_fp8_weights_change_a_block_by_no_more_than_their_rounding(info: Any) -> None:
    x, text = (torch.randn(1, n, 128, generator=torch.Generator().manual_seed(n)) for n in (24, 8))
    temb = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    native, fp8 = (
        load_transformer(info, torch.float32, "cpu", weights).transformer_blocks[0](x, text, temb)
        for weights in ("native", "fp8")
    )
    change = (fp8[0] - native[0]).norm() / (native[0] - x).norm()
    assert 1e-3 < change < 0.06  # e4m3 keeps 3 bits behind the first one: up to 6% a value


def test_the_benchmark_of_a_gpu_has_fp8_weights_where_it_says_so() -> None:
    model = tiny_bench().transformer(Speed(compile=False, weights="fp8"))
    block = model.transformer.transformer_blocks[0]
    rounded = [block.attn1.to_q, block.attn1.to_out[0], block.ff.net[2]]
    assert {layer.weight.qdata.dtype for layer in rounded} == {torch.float8_e4m3fn}

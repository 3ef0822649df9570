"""Weights in fp8. The tests that need torchao are in `with_torchao.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.model.checkpoint import load_transformer, open_checkpoint
from pipeline.model.footprint import weight_bytes
from pipeline.model.memory import check_room
from pipeline.model.transformer import quantized
from pipeline.model.transformer.quantized import check_fp8
from tests.beside import TORCHAO
from tests.docs.pages import ROOT
from tests.run import python_path
from tests.small_models import make_transformer, write_checkpoint
from tests.stub_memory import GB, StubMemory


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("small") / "5b", "5b"))


@pytest.mark.parametrize("family", ["2b", "5b"])
def test_fp8_takes_a_byte_for_each_value_of_attention_and_feed_forward(
    family: str, tmp_path: Path
) -> None:
    small = open_checkpoint(write_checkpoint(tmp_path, family))
    expected = 0
    for name, weight in make_transformer(family).named_parameters():
        layer = ".attn1.to_" in name or ".ff.net." in name
        if layer and name.endswith(".weight"):
            expected += weight.numel() + 4 * weight.shape[0]
        else:
            expected += 2 * weight.numel()
    assert weight_bytes(small, "transformer", 2) > expected
    positions = weight_bytes(small, "transformer", 2) - 2 * sum(
        x.numel() for x in make_transformer(family).parameters()
    )
    assert weight_bytes(small, "transformer", 2, "fp8") == expected + positions


def test_room_is_asked_for_the_bytes_that_fp8_takes(info: Any) -> None:
    needed = weight_bytes(info, "transformer", 2, "fp8")
    check_room(info, "transformer", 2, StubMemory(needed), "cuda:0", "fp8")
    with pytest.raises(MemoryError):
        check_room(info, "transformer", 2, StubMemory(needed - 1, GB), "cuda:0", "fp8")


def test_fp8_without_torchao_names_the_way_to_get_it(
    info: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match=r"needs torchao.*pip install 'retake\[fp8\]'.*native"):
        load_transformer(info, torch.float32, "cpu", "fp8")


def test_fp8_with_an_old_torchao_names_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(__version__="0.9.0+cu126", quantization=None)
    monkeypatch.setitem(sys.modules, "torchao", old)
    with pytest.raises(ValueError, match=r"needs torchao 0\.18 or later, and 0\.9\.0"):
        check_fp8(torch.float32, "cpu")


@pytest.mark.parametrize(
    ("capability", "dtype", "message"),
    [
        ((8, 0), torch.bfloat16, r"A100 has capability 8\.0; 8-bit.*from 8\.9 on.*native"),
        ((9, 0), torch.float16, r"precision is float16.*Set precision to bf16"),
        ((9, 0), torch.bfloat16, None),
        ((8, 9), torch.bfloat16, None),
    ],
)
def test_fp8_is_refused_on_gpus_and_in_precisions_without_its_product(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    message: str | None,
) -> None:
    monkeypatch.setattr(quantized, "_torchao", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    if message is None:
        check_fp8(dtype, "cuda:0")
        return
    with pytest.raises(ValueError, match=message):
        check_fp8(dtype, "cuda:0")


@pytest.mark.skipif(not TORCHAO.is_dir(), reason="torchao is not there; `make test` brings it")
def test_what_torchao_makes_of_weights_is_right() -> None:
    """In a process of its own, the only one that finds torchao."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("with_torchao.py"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(TORCHAO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_native_weights_need_no_torchao(info: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    transformer = load_transformer(info, torch.bfloat16, "cpu")
    assert {weight.dtype for weight in transformer.parameters()} == {torch.bfloat16}

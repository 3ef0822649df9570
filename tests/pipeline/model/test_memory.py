"""Memory: what is free, what a card of a given size leads to at real sizes, and running out."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from pipeline import Editor
from pipeline.model import checkpoint
from pipeline.model import memory as module
from pipeline.model.checkpoint import open_checkpoint
from pipeline.model.footprint import vae_bytes, weight_bytes
from pipeline.model.memory import (
    DeviceMemory,
    OutOfMemory,
    attempt,
    check_room,
    gigabytes,
    is_out_of_memory,
    usable,
)
from pipeline.model.vae import Codec
from tests.published_models import CLIPS, LATENTS, TRANSFORMERS, VAE
from tests.small_models import FAMILIES
from tests.stub_memory import GB, StubMemory

# What is free


def kernel(root: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel's files be these."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(module, "HOST_FILES", root)


MEMINFO = "MemTotal:       64000 kB\nMemFree:  1 kB\nMemAvailable:   50000 kB\n"
V1 = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("files", "free", "total"),
    [
        ({"proc/meminfo": MEMINFO}, 51_200_000, 65_536_000),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "30000000\n",
                "sys/fs/cgroup/memory.current": "12000000\n",
                "sys/fs/cgroup/memory.stat": "anon 3000000\n"
                "inactive_file 5000000\nactive_file 4000000\ninactive_anon 9\n",
            },
            27_000_000,
            30_000_000,
            id="a container",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/memory.max": "40000000\n",
                "sys/fs/cgroup/job/memory.current": "39000000\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.current": "1\n",
            },
            1_000_000,
            40_000_000,
            id="a limit further up",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:cpu:/x\n3:memory:/docker/abc\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "20000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "15000000\n",
                "sys/fs/cgroup/memory/memory.stat": "active_file 1\n"
                "total_inactive_file 1000000\ntotal_active_file 3000000\n",
            },
            9_000_000,
            20_000_000,
            id="cgroup v1",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "3:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": V1,
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "15000000\n",
            },
            51_200_000,
            65_536_000,
            id="cgroup v1 without a limit",
        ),
    ],
)
def test_a_machine_s_free_memory_is_what_its_narrowest_limit_leaves(
    files: dict[str, str],
    free: int,
    total: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel(tmp_path, files, monkeypatch)
    memory = DeviceMemory("cpu")
    assert (memory.free(), memory.total()) == (free, total)
    assert usable(memory, "cpu") == free / 2


def test_this_machine_s_memory_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = DeviceMemory("cpu")
    free, total = memory.free(), memory.total()
    assert free and total
    assert 0 < free <= total
    memory.release()
    kernel(tmp_path, {}, monkeypatch)  # another system than Linux
    assert memory.free() == (memory.total() or 0) // 2
    monkeypatch.setattr(module, "_physical", lambda: None)
    assert (memory.free(), memory.total()) == (None, None)
    assert usable(memory, "cpu") == float("inf")
    assert DeviceMemory("meta").free() is None


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_s_free_memory_counts_what_the_allocator_holds_and_a_limit(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = {
        "mem_get_info": (10 * GB, 24 * GB),
        "memory_reserved": 8 * GB,
        "memory_allocated": 5 * GB,
        "get_per_process_memory_fraction": 1.0,
    }
    for name in list(gpu):
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: gpu[name])
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda,
        "get_per_process_memory_fraction",
        lambda place: asked.append(place) or gpu["get_per_process_memory_fraction"],
    )
    memory = DeviceMemory(device)
    assert (memory.free(), memory.total()) == (13 * GB, 24 * GB)
    gpu["get_per_process_memory_fraction"] = 0.5
    assert (memory.free(), memory.total()) == (7 * GB, 12 * GB)
    assert usable(memory, device) == pytest.approx(0.85 * 7 * GB)
    assert set(asked) == {3}, "torch takes no device without a number here"


def test_numbers_of_bytes_are_told_in_gigabytes() -> None:
    assert [gigabytes(n) for n in (15_437_000_000, 0, None)] == [
        "15.4 GB",
        "0.0 GB",
        "an unknown amount",
    ]


# Real sizes


def card_with_weights(card: int, family: str) -> StubMemory:
    """A card with the transformer and the VAE of a family on it, and a CUDA context."""
    info: Any = SimpleNamespace(transformer=TRANSFORMERS[family], vae=VAE)
    weights = weight_bytes(info, "transformer", 2) + weight_bytes(info, "vae", 2)
    return StubMemory(card * GB - weights - GB / 2, card * GB)


@pytest.fixture(scope="module")
def published_vae() -> Any:
    with torch.device("meta"):
        return AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
        ).to(torch.bfloat16)


SIZES = {
    # family, card: the tiles to encode and to decode; None is the whole frame
    ("2b", 24): (None, None),
    ("2b", 80): (None, None),
    ("5b", 24): (None, (280, 792)),
    ("5b", 80): (None, None),
    ("1.5-5b", 24): ((296, 1432), (232, 752)),
    ("1.5-5b", 80): (None, None),
}


@pytest.mark.parametrize(("family", "card"), SIZES)
def test_a_card_of_any_size_takes_the_largest_tiles_that_fit(
    family: str, card: int, published_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, height, width = CLIPS[family]
    memory = card_with_weights(card, family)
    codec = Codec(published_vae, memory=memory)
    found: list[tuple[int, int] | None] = []

    def noted(_: Any) -> Any:
        vae = published_vae
        tile = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        found.append(tile if vae.use_tiling else None)
        raise RuntimeError("enough")

    for name in ("encode", "decode"):
        monkeypatch.setattr(published_vae, name, noted)
    with pytest.raises(RuntimeError, match="enough"):
        codec.encode(torch.empty(frames, height, width, 3, dtype=torch.uint8, device="meta"))
    with pytest.raises(RuntimeError, match="enough"):
        codec.decode(torch.empty(LATENTS[family], device="meta"), frames)
    assert tuple(found) == SIZES[family, card]
    for tile, decode in zip(found, (False, True), strict=True):
        size = vae_bytes(VAE, frames, height, width, 2, decode=decode, tile=tile)
        assert size <= usable(memory, "cuda")


def test_a_frame_that_diffusers_cannot_take_whole_goes_in_tiles(published_vae: Any) -> None:
    """Whatever the memory: the parts that it convolves hold fewer frames than the kernel."""
    codec = Codec(published_vae, memory=StubMemory(None))
    assert codec._plan(768, 1360, True)[0] is None
    tiles = codec._plan(1088, 1920, True)[0]
    assert tiles is not None
    assert (tiles.height * 8, min(tiles.width * 8, 1920)) == (584, 1920)


# Weights


def test_weights_without_room_are_refused_before_they_are_read(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = open_checkpoint(str(checkpoints["5b"]))
    needed = weight_bytes(info, "transformer", 4)
    check_room(info, "transformer", 4, StubMemory(needed), "cuda:0")
    check_room(info, "transformer", 4, StubMemory(None), "cuda:0")
    with pytest.raises(
        MemoryError,
        match=r"transformer: the weights take 0.0 GB, and 0.0 GB of 24.0 GB are free on cuda:0. "
        "End what else uses the device, take one with more memory, or a smaller checkpoint",
    ):
        check_room(info, "transformer", 4, StubMemory(needed - 1, 24 * GB), "cuda:0")
    for part in ("transformer", "vae", "text_encoder"):
        size = weight_bytes(info, part, 2)
        monkeypatch.setattr(module.DeviceMemory, "free", lambda _, size=size: size - 1)
        with pytest.raises(MemoryError, match=f"{part}: the weights take .* free on cpu"):
            getattr(checkpoint, f"load_{part}")(info, torch.bfloat16, "cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_editor_says_which_ranks_encode_together(
    family: str, checkpoints: dict[str, Path]
) -> None:
    editor = Editor.from_pretrained(checkpoints[family], device="cpu")
    assert editor.codec.group is editor.model.group


# Running out


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("can't start new thread"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
def test_memory_that_runs_out_is_known_in_all_its_forms(error: Exception) -> None:
    def full() -> None:
        raise error

    found = attempt(full)
    assert isinstance(found, OutOfMemory)
    assert found.message.startswith(type(error).__name__)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory"), OSError()],
)
def test_other_errors_are_raised(error: Exception) -> None:
    assert not is_out_of_memory(error)

    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        attempt(fails)


def test_the_tensors_of_a_try_are_gone_when_it_has_run_out_of_memory() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def full() -> None:
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("full")

    gc.disable()  # they must not wait for it
    try:
        assert isinstance(attempt(full), OutOfMemory)
        assert held[0]() is None
    finally:
        gc.enable()


def test_the_cpu_s_own_allocator_is_understood() -> None:
    found = attempt(lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert isinstance(found, OutOfMemory), found


def test_asking_for_memory_loads_no_torch() -> None:
    code = "import sys, pipeline.model.memory; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert cast(Any, DeviceMemory)("cpu").device.type == "cpu"

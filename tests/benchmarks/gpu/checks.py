"""Sections that check: versions, memory that is too small, a group of one rank, the demo."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from pipeline import Editor
from pipeline.algorithm.branches import Branch
from pipeline.errors import ErrorCode, RowError
from pipeline.model.attention.kernels import pick_kernel, torch_kernels
from pipeline.model.attention.reference import attend
from pipeline.model.parallel.degrees import Degrees
from pipeline.model.parallel.group import BACKEND, RankGroup, _Call, import_xfuser
from tests.benchmarks.gpu.card import GB, Bench, first_line, gigabytes, hardware


def versions(bench: Bench) -> Iterator[list[str]]:
    """Versions, and which kernel SDPA takes first."""
    import diffusers

    yield ["", ""]
    yield ["torch", torch.__version__]
    yield ["diffusers", diffusers.__version__]
    yield ["hardware", hardware(bench.device)]
    if bench.on_gpu:
        yield ["CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}"]
        yield ["compute capability", str(torch.cuda.get_device_capability())]
        yield ["memory", gigabytes(torch.cuda.mem_get_info()[1] / GB)]
    priority: list[int] = getattr(torch._C, "_get_sdp_priority_order", list)()
    backends: Any = torch.nn.attention.SDPBackend
    names = {int(v): k for k, v in backends.__members__.items()}
    yield ["SDPA's order", ", ".join(names.get(int(p), str(p)) for p in priority)]


@torch.no_grad()
def out_of_memory(bench: Bench) -> Iterator[list[str]]:
    """Too little memory for a branch: a clear error, all given back, and the next call works."""
    yield ["what", "result"]
    model, x, empty = bench.transformer(), bench.latent(), bench.prompt("")
    bench.free()
    held = torch.cuda.memory_allocated() if bench.on_gpu else 0
    with bench.limited(held + 0.2 * GB):
        try:
            model.predict([Branch(x, empty)], 500)
            yield ["a forward with 0.2 GB", "it fits: this device has no limit"]
        except RowError as error:
            assert error.code is ErrorCode.OUT_OF_MEMORY
            yield ["a forward with 0.2 GB", first_line(error)]
    after = torch.cuda.memory_allocated() if bench.on_gpu else 0
    yield ["not given back", gigabytes((after - held) / GB)]
    model.predict([Branch(x, empty)], 500)
    yield ["a forward without the limit", "works"]


@torch.no_grad()
def group_of_one(bench: Bench) -> Iterator[list[str]]:
    """NCCL and xfuser's attention in a group of one rank, against attention in one process."""
    yield ["what", "result"]
    backend = "nccl" if bench.on_gpu else "gloo"
    xfuser = import_xfuser(bench.device)
    with tempfile.TemporaryDirectory() as folder:
        xfuser.state.init_distributed_environment(
            1, 0, f"file://{folder}/rendezvous", local_rank=0, backend=backend
        )
        xfuser.state.initialize_model_parallel(backend=backend)
        group = RankGroup(Degrees(), bench.device, xfuser)
        try:
            values = torch.arange(5.0, device=bench.device)
            same = torch.equal(group.gather_values(values, [5]), values)
            yield [f"gathering over {backend}", "bit for bit" if same else "wrong"]
            q, k, v = torch.randn(3, 1, 4, 100, 64, device=bench.device, dtype=bench.dtype)
            kernel = pick_kernel(torch_kernels(bench.device, logsumexp=False), q, logsumexp=False)
            call = _Call((), None, enumerate([None]), kernel)
            ours = xfuser.usp.USP(q, k, v, backend=BACKEND, attention_kwargs={BACKEND: call})
            error = (ours - attend(q, k, v, (), None)).abs().max().item()
            yield ["attention through xfuser, largest error", f"{error:.1e}"]
        finally:
            group.stop()


def demo(bench: Bench) -> Iterator[list[str]]:
    """Edits by the embedded checkpoint here and on the CPU."""
    yield ["edit", "largest difference of a pixel (0..255)", "mean"]
    frames = torch.full((9, 48, 48, 3), 200, dtype=torch.uint8)
    for i in range(9):
        frames[i, 16:28, 4 + 3 * i : 16 + 3 * i] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    prompts = ["a blue square", "a green square"]
    made = []
    for device in ("cpu", bench.device):
        editor = Editor.from_pretrained("embedded", device=device, torch_dtype=torch.float32)
        editor.set_progress_bar_config(disable=True)
        trajectory = editor.invert(frames, steps=5)
        made.append(editor.reconstruct(trajectory, prompts, start=0.6))
    for prompt, ours, theirs in zip(prompts, *made, strict=True):
        off = (ours.cpu().int() - theirs.cpu().int()).abs()
        yield [prompt, str(int(off.max())), f"{off.float().mean():.3f}"]

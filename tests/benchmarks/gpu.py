"""What one GPU does with a published model at its real size: seconds, MFU, memory, tiles, limits.

    python -m tests.benchmarks.gpu [--model 5b] [--device cuda] [--only NAME ...]

The weights are random, so nothing is downloaded. Takes about 20 minutes of an 80 GB card for 5b.
The sections run in order of what they tell, and each is written when it ends: a short loan of a
card gives the first ones. What fails is a row with its reason, and the next section runs.

The table is printed and written to `results/<model>_<hardware>_<date>.md` beside this file. Untried
on a GPU: the tests run it in tiny sizes on a CPU, where there is no memory to measure.
"""

from __future__ import annotations

import argparse
import datetime
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import Editor
from pipeline.algorithm.branches import Branch
from pipeline.errors import ErrorCode, RowError
from pipeline.model import footprint
from pipeline.model.attention import attend
from pipeline.model.parallel.degrees import Degrees
from pipeline.model.parallel.group import BACKEND, RankGroup, _Call, import_xfuser
from pipeline.model.parallel.kernels import pick_kernel, torch_kernels
from tests.benchmarks.card import GB, Bench, gigabytes, hardware, host_waits, real_sizes
from tests.published_models import CLIPS

HERE = Path(__file__).parent
CARD = 24 * GB
"""The card that memory is limited to in one section."""

Section = Callable[[Bench], Iterator[list[str]]]


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


def kernels(bench: Bench) -> Iterator[list[str]]:
    """Attention at the real shape, with the logsumexp that ring needs and without."""
    yield ["dtype", "kernel", "logsumexp", "seconds", "speed"]
    info = bench.sizes.info
    config, tokens = info.transformer, info.text_tokens + info.video_tokens(*bench.sizes.clip)
    heads, width = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        like = torch.randn(1, heads, tokens, width, device=bench.device, dtype=dtype)
        for logsumexp in (True, False):
            for name, kernel in torch_kernels(bench.device, logsumexp=logsumexp).items():
                row = [str(dtype).removeprefix("torch."), name, "yes" if logsumexp else "no"]
                try:
                    pick_kernel({name: kernel}, like, logsumexp=logsumexp)
                    seconds, _ = bench.measured(partial(kernel, like, like, like))
                    flops = 4 * tokens**2 * heads * width
                    yield [*row, f"{seconds:.4f}", bench.speed(flops, seconds)]
                except RuntimeError as error:
                    yield [*row, first_line(error), ""]


@torch.no_grad()
def forwards(bench: Bench) -> Iterator[list[str]]:
    """A plain forward, an edit's with its reference, and K edits; memory beside the count."""
    yield ["forwards", "seconds", "speed", "peak", "counted", "host waits"]
    model, info, clip = bench.transformer(), bench.sizes.info, bench.sizes.clip
    x, empty, plain = bench.latent(), bench.prompt(""), footprint.forward_flops
    tokens = info.text_tokens + info.video_tokens(*clip)
    for name, edits in (("1 plain", 0), ("1 edit", 1), (f"{bench.sizes.edits} edits", None)):
        count = 2 * (bench.sizes.edits if edits is None else edits)
        branches = [Branch(x, bench.prompt(f"{i}"), empty) for i in range(count)]
        work = partial(model.predict, branches or [Branch(x, empty)], 500, x if count else None)
        seconds, peak = bench.measured(work)
        flops = plain(info, *clip) + count * plain(info, *clip, injected=True)
        counted = footprint.transformer_bytes(
            info, tokens, 1, bench.dtype.itemsize, batch=count + 1, references=int(count > 0)
        )
        yield [
            name,
            f"{seconds:.3f}",
            bench.speed(flops, seconds),
            gigabytes(peak),
            gigabytes(counted / GB),
            str(host_waits(bench, work)),
        ]


@torch.no_grad()
def vae(bench: Bench) -> Iterator[list[str]]:
    """Encoding and decoding, whole and in the smallest tiles, at each size."""
    yield from _vae(bench, (False, True))


@torch.no_grad()
def small_card(bench: Bench) -> Iterator[list[str]]:
    """The same on a card of 24 GB that holds the transformer too: the codec chooses."""
    left = CARD - footprint.weight_bytes(bench.sizes.info, "transformer", bench.dtype.itemsize)
    with bench.limited(left):
        yield from _vae(bench, (None,))


def _vae(bench: Bench, ways: Sequence[bool | None]) -> Iterator[list[str]]:
    yield ["clip", "", "tiles", "seconds", "peak", "counted"]
    for frames, height, width in bench.sizes.vae_clips:
        shape = bench.sizes.info.latent_shape(frames, height, width)
        latent = torch.randn(shape, device=bench.device)
        video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
        for decode in (False, True):
            for tiling in ways:
                codec = bench.codec(tiling)
                work = (
                    partial(codec.decode, latent, frames)
                    if decode
                    else partial(codec.encode, video)
                )
                row = [f"{frames}x{height}x{width}", "decode" if decode else "encode"]
                try:
                    seconds, peak = bench.measured(work, repeats=1)
                except (RuntimeError, RowError) as error:
                    yield [*row, "whole" if tiling is False else "tiles", first_line(error), "", ""]
                    continue
                finally:
                    bench.free()
                part = codec.vae
                tile = (part.tile_sample_min_height, part.tile_sample_min_width)
                tile_or_none = tile if part.use_tiling else None
                counted = footprint.vae_bytes(
                    part.config, frames, height, width, bench.dtype.itemsize,
                    decode=decode, tile=tile_or_none,
                )  # fmt: skip
                cut = "x".join(map(str, tile)) if part.use_tiling else "whole"
                yield [*row, cut, f"{seconds:.2f}", gigabytes(peak), gigabytes(counted / GB)]


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
            call = _Call((), None, enumerate([None]), group._kernel(q))
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


@torch.no_grad()
def text_encoder(bench: Bench) -> Iterator[list[str]]:
    """T5 with random weights: seconds for a prompt, and its memory."""
    from transformers import T5Config, T5EncoderModel

    yield ["weights", "seconds for a prompt", "activations"]
    half = torch.bfloat16 if bench.on_gpu else torch.float32
    model = bench.build(lambda: T5EncoderModel(T5Config(**bench.sizes.t5)), half)
    tokens = torch.zeros(1, bench.sizes.info.text_tokens, dtype=torch.long, device=bench.device)
    seconds, peak = bench.measured(partial(model, tokens))
    weights = sum(p.nbytes for p in model.parameters())
    yield [gigabytes(weights / GB), f"{seconds:.4f}", gigabytes(peak)]


SECTIONS: dict[str, Section] = {
    "versions": versions,
    "kernels": kernels,
    "forwards": forwards,
    "vae": vae,
    "small_card": small_card,
    "out_of_memory": out_of_memory,
    "group_of_one": group_of_one,
    "demo": demo,
    "text_encoder": text_encoder,
}


def section(bench: Bench, name: str) -> str:
    """A section as Markdown; what fails in it is its last row."""
    rows: list[list[str]] = []
    try:
        rows.extend(SECTIONS[name](bench))
    except Exception as error:  # the next section may tell something all the same
        rows = rows or [["failed"]]
        rows.append([f"failed: {type(error).__name__}: {first_line(error)}"])
    finally:
        bench.free()
    width = len(rows[0])
    lines = [f"| {' | '.join(row + [''] * (width - len(row)))} |" for row in rows]
    lines.insert(1, "|---" * width + "|")
    return f"## {name}\n\n{SECTIONS[name].__doc__}\n\n" + "\n".join(lines) + "\n"


def run(bench: Bench, names: Sequence[str], file: Path) -> None:
    """Run sections, print each, and write them to a file as they come."""
    title = f"# {bench.sizes.info.family} on {hardware(bench.device)}, {datetime.date.today()}\n"
    text = f"{title}\nWritten by `python -m tests.benchmarks.gpu`; the weights are random.\n"
    for name in names:
        made = section(bench, name)
        print(made, flush=True)
        text += f"\n{made}"
        file.write_text(text)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=list(CLIPS), default="5b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args()
    device = torch.device(options.device)
    name = re.sub(r"[^a-z0-9]+", "-", hardware(device).lower()).strip("-")
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{options.model}_{name}_{datetime.date.today()}.md"
    run(Bench(real_sizes(options.model), device), options.only, file)


if __name__ == "__main__":
    main()

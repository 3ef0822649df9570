"""What storing and reading trajectories costs beside the model, on a mid-sized random one.

    python -m tests.benchmarks.storage > tests/benchmarks/storage.md

A transformer of 4 blocks of width 384 inverts a clip of about 1,700 tokens; its trajectory is
stored as a job does it, and walked down again from storage, with 50 ms added to each request.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import dataclass
from datetime import date

import torch

from pipeline.algorithm.inversion import invert
from pipeline.model.scheduler import schedule_from_config
from pipeline.quality.metrics import signal_to_error_db
from pipeline.settings import Reconstruction
from pipeline.storage import Folder
from pipeline.trajectories.index import TrajectoryIndex, commit
from pipeline.trajectories.reader import TrajectoryReader
from pipeline.trajectories.writer import Dtype, ShardWriter
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import SCHEDULER, make_transformer

STEPS = 10
SHAPE = (9, 16, 24, 32)
LATENCY_S = 0.05


@dataclass(frozen=True)
class SlowFolder(Folder):
    """A folder whose every read takes 50 ms longer."""

    def read_range(self, name: str, start: int, end: int) -> bytes:
        time.sleep(LATENCY_S)
        return super().read_range(name, start, end)


def main() -> None:
    torch.manual_seed(0)
    transformer = make_transformer(
        "5b", num_attention_heads=12, attention_head_dim=32, num_layers=4, sample_frames=33,
        sample_height=24, sample_width=32,
    )  # fmt: skip
    prompts = {name: torch.randn(20, 32) for name in ("", "an edit")}
    model = NamedModel(transformer, prompts)
    schedule = schedule_from_config(SCHEDULER, STEPS)
    began = time.perf_counter()
    entries = invert(model.velocity(), torch.randn(SHAPE), schedule)
    inversion_s = time.perf_counter() - began
    print(
        f"{SHAPE[0] * SHAPE[2] * SHAPE[3] // 4} tokens, {STEPS} steps, float32, "
        f"{torch.get_num_threads()} threads of {platform.machine()}, {date.today()}.\n"
    )
    print("| stored as | write, s | of the inversion | round trip of the latents, dB |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        dtypes: tuple[Dtype, ...] = ("fp16", "bf16", "fp32")
        for dtype in dtypes:
            folder = Folder(f"{scratch}/{dtype}")
            began = time.perf_counter()
            index = store(folder, entries, dtype)
            write_s = time.perf_counter() - began
            with TrajectoryReader(folder, index) as reader:
                kept = min(
                    signal_to_error_db(entries[i], reader.entry(i)) for i in range(STEPS, -1, -1)
                )
            share = write_s / inversion_s
            print(f"| {dtype} | {write_s:.3f} | {share:.2%} | {kept:.1f} |")
        print("\n| walk with one edit | seconds | waited for storage |")
        print("|---|---|---|")
        quick = Folder(f"{scratch}/fp16")
        slow = SlowFolder(f"{scratch}/fp16")
        for name, folder, ahead in (
            ("no latency", quick, 6),
            ("50 ms a request, reading ahead", slow, 6),
            ("50 ms a request, one at a time", slow, 1),
        ):
            took, waited = walk(model, folder, index_of(folder), schedule, ahead)
            print(f"| {name} | {took:.2f} | {waited:.2f} s |")


def index_of(folder: Folder) -> TrajectoryIndex:
    from pipeline.trajectories.index import read_index

    index = read_index(folder, "k")
    assert index is not None
    return index


def store(folder: Folder, entries: torch.Tensor, dtype: Dtype) -> TrajectoryIndex:
    writer = ShardWriter(folder, dtype)
    for entry in entries:
        writer.add(entry)
    index = TrajectoryIndex("k", SHAPE, dtype, (writer.store(),))
    commit(folder, index)
    return index


def walk(
    model: NamedModel, folder: Folder, index: TrajectoryIndex, schedule: object, ahead: int
) -> tuple[float, float]:
    """Seconds for one edit, and how many of them it waited for an entry."""
    waited = 0.0
    began = time.perf_counter()
    with TrajectoryReader(folder, index, read_ahead=ahead) as reader:

        def entry(level: int) -> torch.Tensor:
            nonlocal waited
            asked = time.perf_counter()
            latents = reader.entry(level)
            waited += time.perf_counter() - asked
            return latents

        settings = Reconstruction(start="inverted")
        edit_with(model, entry, [Edit("an edit")], schedule, settings)  # type: ignore[arg-type]
    return time.perf_counter() - began, waited


if __name__ == "__main__":
    main()

"""The speed of a whole job beside that of the bare functions, on the same cores.

    python -m tests.benchmarks.speed_of_light [--videos 4] [--rounds 2] [--threads N]

The job is `retake run` with one group: Ray, the owner, the rank, storage, results, certificates.
The bare functions are `Editor` in a plain loop of another process: read, encode, invert, decode the
clip's own latent (what the VAE loses, `inversion.vae_psnr`), reconstruct, decode, write. Both edit
the same clips with the same random checkpoint of middle size, one after the other, `--rounds` times
in turn; a video takes some ten seconds or more, and of each round the medians count. The ranks and
the loop have the same number of threads: by default one core less than there are, so that what the
job does beside its ranks has a core, as on a node with GPUs.

The job is looked at from its first finished video to its last, by the log of the run: its start-up
is shown beside. A group has two videos at a time, so what it did meanwhile is not a whole number of
videos; it is counted in inversions and sets of edits, and the figure is the seconds that the loop
takes for as many, over the seconds that they took. The work of the models is the same; what the job
does more is in the figure: it stores trajectories, sources and results, and measures edits. `that
held the rank` are the seconds in which the rank was at a request; what is missing to the others is
orchestration.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.benchmarks.figures import Figure, Measured, run, say

TARGET = 0.95
LONG_S = 10.0
"""A video takes so long at least where the target holds."""
EDITS = 4


@dataclass(frozen=True)
class Size:
    """What is edited with what.

    Args:
        frames, pixels: of a clip, which is a square.
        layers: of the transformer, of width 512.
        steps: of the inversion.
    """

    frames: int = 9
    pixels: int = 96
    layers: int = 4
    steps: int = 50


SMALL = Size(frames=5, pixels=64, layers=1, steps=2)
"""For `--quick`."""


@dataclass(frozen=True)
class Bare:
    """Seconds of the loop, of each video.

    Args:
        inverting: reading included, and what certifies the VAE.
        editing: decoding and writing included.
    """

    inverting: list[float]
    editing: list[float]

    @property
    def a_video(self) -> float:
        return statistics.median(self.inverting) + statistics.median(self.editing)


@dataclass(frozen=True)
class Steady:
    """A job from its first finished video to its last.

    Args:
        seconds: that it took.
        inversions, edits: how many videos were inverted and edited in that time.
        held: seconds that these held the group.
        start: seconds from the command to the first finished video.
        whole: seconds of the command.
    """

    seconds: float
    inversions: int
    edits: int
    held: float
    start: float
    whole: float

    def over(self, bare: Bare) -> float:
        """The rate of the job over that of the bare functions."""
        inverting = self.inversions * statistics.median(bare.inverting)
        return (inverting + self.edits * statistics.median(bare.editing)) / self.seconds


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--videos", type=int, help="of each round; 4, or 3 with --quick")
    parser.add_argument("--rounds", type=int, help="2, or 1 with --quick")
    parser.add_argument("--threads", type=int, help="of the ranks and of the loop")
    run(measure, __doc__, parser)


def measure(given: Namespace) -> Measured:
    from pipeline.storage import Folder
    from tests.benchmarks import trace

    size = SMALL if given.quick else Size()
    threads = given.threads or spare_one()
    videos = given.videos or (3 if given.quick else 4)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), size, videos)
        found = []
        for number in range(given.rounds or (1 if given.quick else 2)):
            jobs = steady(Path(folder), number, threads)
            say(f"job: {jobs.edits} videos in {jobs.seconds:.1f} s, the first at {jobs.start:.1f}")
            bare = in_a_loop(Path(folder), threads)
            say(f"bare functions: {bare.a_video:.1f} s a video; the job at {jobs.over(bare):.3f}")
            found.append((jobs, bare))
        parts = trace.table(trace.done(Folder(str(Path(folder) / "output-0"))))
    tables = {"speed of light": table(found), "parts of the job": parts}
    return Measured(figures(found, threads), tables)


def figures(found: Sequence[tuple[Steady, Bare]], threads: int) -> list[Figure]:
    ratio = statistics.median(job.over(bare) for job, bare in found)
    a_video = statistics.median(bare.a_video for _, bare in found)
    start = statistics.median(job.start for job, _ in found)
    note = f"{threads} thread{'s' * (threads != 1)}, {a_video:.1f} s a video"
    least = TARGET if a_video >= LONG_S else None
    if least is None:
        note += f"; the target of {TARGET:g} is for {LONG_S:g} s and more"
    return [
        Figure("job over bare functions", ratio, "x", "ratio", at_least=least, note=note),
        Figure("bare functions, a video", a_video, "s", "timed"),
        Figure("command to first finished video", start, "s", "timed"),
    ]


def table(found: Sequence[tuple[Steady, Bare]]) -> str:
    """Markdown: a line for each round."""
    lines = [
        "| round | bare: inverting s | editing s | job: inversions | edits of videos | s | "
        "that held the rank | of the bare rate | first video at s | whole command s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, (job, bare) in enumerate(found, 1):
        inverting, editing = map(statistics.median, (bare.inverting, bare.editing))
        cells = [str(number), f"{inverting:.2f}", f"{editing:.2f}", str(job.inversions)]
        cells += [str(job.edits), f"{job.seconds:.2f}", f"{job.held:.2f}", f"{job.over(bare):.3f}"]
        lines.append(f"| {' | '.join([*cells, f'{job.start:.1f}', f'{job.whole:.1f}'])} |")
    return "\n".join(lines) + "\n"


def spare_one() -> int:
    """Threads that leave a core to what a job does beside its ranks."""
    from cluster.stages.environment import cores

    return max(1, cores() - 1)


def prepare(folder: Path, size: Size, videos: int) -> None:
    """Write the checkpoint, the clips, the manifest, and the job without its output."""
    from jobs.manifest.writing import write_manifest
    from tests.small_models import write_checkpoint

    latents = size.pixels // 8
    write_checkpoint(
        folder / "checkpoint",
        "5b",
        attention_head_dim=64,
        num_layers=size.layers,
        time_embed_dim=512,
        sample_height=latents,
        sample_width=latents,
        sample_frames=size.frames,
    )
    edits = [{"edit_id": f"e{i}", "prompt": prompt} for i, prompt in enumerate(prompts())]
    rows = []
    for number in range(videos):
        draw(folder / f"v{number}.mp4", size, number)
        rows.append({"video": f"v{number}.mp4", "video_id": f"v{number}", "edits": edits})
    write_manifest(rows, str(folder / "manifest.parquet"))
    job = {
        "manifest": str(folder / "manifest.parquet"),
        "checkpoint": str(folder / "checkpoint"),
        "inversion": {"steps": size.steps},
        "cluster": {"device": "cpu", "reconstruction": {"groups": 1}},
    }
    (folder / "job.json").write_text(json.dumps(job))


def prompts() -> list[str]:
    return [f"edit {i}" for i in range(EDITS)]


def draw(path: Path, size: Size, number: int) -> None:
    """Write a clip of a moving pattern."""
    import numpy as np

    from pipeline.media.encoding import write_clip

    y, x = np.mgrid[0 : size.pixels, 0 : size.pixels] / size.pixels * 6.0
    frames = [
        np.stack([np.sin(x + 0.1 * t + number), np.cos(y - 0.2 * t), np.sin(x * y / 3)], axis=-1)
        for t in range(size.frames)
    ]
    pixels = np.rint(127.5 * (1 + np.stack(frames))).astype(np.uint8)
    with path.open("wb") as file:
        write_clip(file, pixels, fps=8.0)


def steady(folder: Path, number: int, threads: int) -> Steady:
    """Run the job into a new output folder, and look at its log."""
    output = folder / f"output-{number}"
    began = time.time()
    program(folder, threads, "--job", str(output))
    whole = time.time() - began
    log = output / "logs"
    events = [json.loads(line) for part in log.rglob("*.jsonl") for line in part.open()]
    return read(events, began, whole)


def read(events: Sequence[dict[str, Any]], began: float, whole: float) -> Steady:
    """What the log of a run says.

    Args:
        began: when the command began, in seconds since 1970.
    """
    done = [
        (one["part"], datetime.fromisoformat(one["time"]).timestamp(), one["seconds"])
        for one in events
        if one["event"] == "video done"
    ]
    edited = [end for part, end, _ in done if part == "edits"]
    first, last = min(edited), max(edited)
    some = [one for one in done if first < one[1] <= last]
    edits = sum(part == "edits" for part, _, _ in some)
    held = sum(seconds for _, _, seconds in some)
    return Steady(last - first, len(some) - edits, edits, held, first - began, whole)


def in_a_loop(folder: Path, threads: int) -> Bare:
    """Run the bare functions on the same clips."""
    return Bare(**json.loads(program(folder, threads, "--bare").splitlines()[-1]))


def program(folder: Path, threads: int, *what: str) -> str:
    """Run this module in a process of its own; returns what it printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, "-m", "tests.benchmarks.speed_of_light", str(threads), str(folder)]
    done = subprocess.run(
        [*command, *what], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(what)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def as_job(folder: Path, output: Path, threads: int) -> None:
    """The job, in this process; its ranks have so many threads."""
    from cluster.layout import placement
    from jobs.cli import main as command

    job = json.loads((folder / "job.json").read_text()) | {"output": str(output)}
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(job))  # JSON is YAML
    sys.argv = ["retake", "run", str(path)]
    with patch.object(placement, "_threads", lambda *_: threads):
        command()


def bare(folder: Path) -> Bare:
    """The loop, in this process. The first video is done twice: what is once only is left out."""
    from pipeline import Editor
    from pipeline.quality.certificate import vae_psnr_db
    from pipeline.settings import Inversion, Reconstruction

    job = json.loads((folder / "job.json").read_text())
    inversion, settings = Inversion(**job["inversion"]), Reconstruction()
    editor = Editor.from_pretrained(job["checkpoint"], device="cpu")
    editor.set_progress_bar_config(disable=True)
    editor.encode_prompts(["", *prompts()])
    seconds = Bare([], [])
    clips = sorted(folder.glob("v*.mp4"))
    for clip in [clips[0], *clips]:
        began = time.perf_counter()
        source = editor.read(clip)
        trajectory = editor.invert(source, inversion, highest=float(settings.start))
        clean, decode = trajectory.latents[0], partial(editor.decode, frames=trajectory.frames)
        vae_psnr_db(source.frames, clean, decode)
        inverted = time.perf_counter()
        for place, video in enumerate(editor.reconstruct(trajectory, prompts(), settings)):
            editor.write(folder / "bare" / f"{clip.stem}-{place}.mp4", video, fps=trajectory.fps)
        seconds.inverting.append(inverted - began)
        seconds.editing.append(time.perf_counter() - inverted)
    return Bare(seconds.inverting[1:], seconds.editing[1:])


if __name__ == "__main__":
    if "--bare" in sys.argv:
        print(json.dumps(asdict(bare(Path(sys.argv[2])))))
    elif "--job" in sys.argv:
        as_job(Path(sys.argv[2]), Path(sys.argv[4]), int(sys.argv[1]))
    else:
        main()

"""A rank without a model, which sleeps for as long as its work is counted, and writes down when."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.layout.work import Work
from cluster.ranks.channel import Channel
from cluster.ranks.messages import EditVideo, EncodePrompts, InvertVideo, Start, parse_request
from cluster.ranks.process import serve
from pipeline.records import EditResult, InversionResult, VideoSpec
from pipeline.settings import EditingSettings

SECONDS = "BUSY_SECONDS"
"""The environment variable that holds how long a plain forward takes."""


def prepare(start: Start, _: Channel) -> dict[type, Callable[..., Any]]:
    settings = EditingSettings(output=start.settings["output"])
    forward_s = float(os.environ[SECONDS])
    log = Path(settings.output) / f"busy-{os.getpid()}"

    def work(forwards: float) -> None:
        began = time.time()
        time.sleep(forwards * forward_s)
        with log.open("a") as file:
            file.write(f"{began} {time.time()}\n")

    def invert(video: VideoSpec) -> InversionResult:
        work(Work.of(settings, 1).inversion)
        return InversionResult("k", frames=5, height=8, width=8, fps=8.0, source="s")

    def edit(video: VideoSpec, inversion: InversionResult, number: int = 0) -> list[EditResult]:
        work(Work.of(settings, len(video.edits)).editing)
        return [EditResult(edit_id=one.edit_id, output="e", seed=1) for one in video.edits]

    return {InvertVideo: invert, EditVideo: edit, EncodePrompts: len_of}


def len_of(prompts: list[str]) -> int:
    return len(prompts)


if __name__ == "__main__":
    serve(prepare, parse_request)

"""From the command to the arithmetic a row crosses few functions: whoever debugs it reads them all.

They are counted where they run: in the driver from `jobs.cli.run` to `cluster.dataflow.run`, in the
owner of a group while it receives an answer, and in the program of a rank when it attends.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cluster.ranks import process
from cluster.ranks.channel import Channel
from cluster.ranks.conversation import Conversation
from cluster.ranks.messages import (
    EditVideo,
    InvertVideo,
    Start,
    parse_request,
    split_number,
    to_line,
)
from cluster.ranks.owner import CHANNEL
from cluster.settings import GroupSettings
from cluster.stages import group as stages
from cluster.stages.edit import EditVideos
from jobs.cli import app
from jobs.manifest.writing import write_manifest
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.group import attend
from pipeline.model.text_encoder import encode_prompt
from pipeline.records import EditSpec, InversionResult, VideoSpec, from_dict
from pipeline.settings import EditingSettings, Inversion, VideoSettings
from tests.cluster.ranks.test_owner import COMMAND
from tests.cluster.test_stages import Reports, a_row, checked
from tests.drawn_videos import waves
from tests.small_jobs import a_job
from tests.stacks import functions_of_ours

MOST = 15


class NoMoreRequests(Exception):
    """Ends a rank's program."""


def functions_of_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """From `retake run` to the graph."""
    found: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        found.extend(functions_of_ours(sys._getframe(1)))
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.dataflow.run", stop)
    write_manifest([a_row("a.mp4")], str(tmp_path / "m.parquet"))
    job = tmp_path / "job.yaml"
    job.write_text(f"manifest: {tmp_path}/m.parquet\noutput: {tmp_path}/o\n")
    CliRunner().invoke(app, ["run", str(job)])
    return [*found[found.index("run") :], "run"]


def functions_of_owner(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """From a stage to its wait for an inversion and for edits; the rank holds no model."""
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    found: list[list[str]] = []
    ask = Conversation.ask

    def watched(talk: Conversation, *message: Any) -> Any:
        found.append(functions_of_ours(sys._getframe(1)))
        return ask(talk, *message)

    stage = EditVideos(a_job(), Reports(), GroupSettings(), "cpu", 1)
    monkeypatch.setattr(Conversation, "ask", watched)
    stage(checked([a_row("a")]))
    stage.group.close()
    return found[0], found[-1]


def functions_of_rank(
    monkeypatch: pytest.MonkeyPatch, settings: EditingSettings, video: VideoSpec
) -> tuple[list[str], list[str]]:
    """From the program of a rank to attention, while it inverts and while it edits."""
    found: list[list[str]] = []

    def watched(*arguments: Any) -> Any:
        found.append([*functions_of_ours(sys._getframe(1)), "attend"])
        return attend(*arguments)

    owners, ranks = socket.socketpair()

    def requests() -> Iterator[tuple[int, Any]]:
        with owners, owners.makefile("rb") as lines:
            said = (json.loads(split_number(line)[1]) for line in lines)
            results = (answer["result"] for answer in said if "result" in answer)
            yield 0, to_line(Start("edits", asdict(settings), "cpu"))
            next(results)
            yield 1, InvertVideo(replace(video, edits=()))
            inversion = from_dict(InversionResult, next(results))
            yield 2, EditVideo(video, inversion)
            (made,) = next(results)
            assert made["error"] is None
            next(said)  # it has finished: a rank whose owner is gone ends its process, here ours
            raise NoMoreRequests

    class Messages:
        def __init__(self) -> None:
            self.requests = requests()

        def get(self) -> tuple[int, Any]:
            return next(self.requests)

    monkeypatch.setattr("pipeline.model.group.attend", watched)
    monkeypatch.setattr(process, "SimpleQueue", Messages)
    monkeypatch.setattr(Channel, "read", lambda *_: None)
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv(CHANNEL, str(ranks.detach()))
    with pytest.raises(NoMoreRequests), torch.no_grad():  # which puts back what the rank sets
        process.serve(process.prepare, parse_request)
    inverting = next(names for names in found if "invert_video" in names)
    editing = next(names for names in found if "edit_video" in names)
    return inverting, editing


def test_a_row_crosses_at_most_fifteen_functions_from_the_command_to_the_arithmetic(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = EditingSettings(
        checkpoint=str(checkpoints["5b"]),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=Inversion(steps=2),
    )
    info = open_checkpoint(settings.checkpoint)
    tokenizer, encoder = load_text_encoder(info, torch.float32, "cpu")
    from cluster.ranks.editing import prompt_store

    for prompt in ("", "a fox"):
        embedding = encode_prompt(tokenizer, encoder, prompt, info.text_tokens)
        prompt_store(settings, info).write(prompt, embedding)
    with (tmp_path / "clip.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(waves(9, 40, 60)), fps=8)
    edits = (EditSpec("a fox", edit_id="fox"),)
    video = VideoSpec(str(tmp_path / "clip.mp4"), "clip", edits=edits)
    inverting, editing = functions_of_rank(monkeypatch, settings, video)
    driver = functions_of_driver(monkeypatch, tmp_path)
    to_inversion, to_edits = (driver + way for way in functions_of_owner(monkeypatch))
    assert to_inversion == to_edits == ["run", "run_job", "run", "__call__", "ask", "request"]
    for way in (to_inversion + inverting, to_edits + editing):
        assert len(way) <= MOST, way

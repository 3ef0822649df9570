"""What a node's memory, disk, processes and copies of files lead to, for docs/messages.md."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import fsspec
import torch

from cluster.events.record import ignore
from cluster.output.attempts import Attempts
from cluster.ranks.conversation import Conversation
from cluster.ranks.failures import RankGroupFailed
from cluster.ranks.messages import Answer, EncodePrompts, Progress, Start, numbered, to_line
from cluster.ranks.rank import Rank
from cluster.settings import ClusterSettings
from cluster.stages.first_prompts import Unheard
from cluster.stages.group import GroupStage
from pipeline import Editor
from pipeline.errors import RowError, UnsupportedCheckpoint
from pipeline.model.checkpoint import EDITING_PARTS, CheckpointPin, open_checkpoint
from pipeline.model.memory import DeviceMemory
from pipeline.model.prompts import PromptStore
from pipeline.storage import Folder
from tests.checkpoint_stores import in_memory
from tests.docs.mistakes.provoke import Mistakes, clip, python, retake, stored
from tests.small_models import change_json

STALL_S = 0.05


def raised(call: Callable[[], Any], *kinds: type[Exception]) -> str:
    """The text of an error, as a row or the end of a run has it."""
    try:
        call()
    except kinds as error:
        return str(error)
    return "nothing was raised"


# Memory


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.25 GiB")


def vae_full(editor: Editor, name: str, call: Callable[[Editor], Any]) -> None:
    with patch.object(editor.codec.vae, name, full):
        call(editor)


def transformer_full(editor: Editor) -> None:
    block = editor.model.transformer.transformer_blocks[0]
    with patch.object(block, "forward", full):
        editor.reconstruct(stored(), "a zebra")


def no_memory(*command: str) -> str:
    with patch.object(DeviceMemory, "free", return_value=0):
        return retake(*command)


MEMORY: Mistakes = {
    "a clip too large for the VAE to encode": lambda: python(
        lambda e: vae_full(e, "encode", lambda e: e.invert(clip()))
    ),
    "a clip too large for the VAE to decode": lambda: python(
        lambda e: vae_full(e, "decode", lambda e: e.reconstruct(stored(), "a zebra"))
    ),
    "a clip too large for the transformer": lambda: python(transformer_full),
    "`retake edit`, a device with no room for the weights": lambda: no_memory(
        "edit", "horse.mp4", "a zebra", "--checkpoint", "5b"
    ),
}

# Checkpoints on their way to a node


@contextmanager
def in_a_store() -> Iterator[str]:
    """The URI of a checkpoint in object storage; the cache of this node is empty."""
    shutil.rmtree("cache", ignore_errors=True)
    name = "bucket/5b"
    try:
        yield in_memory(Path("5b").absolute(), name)
    finally:
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def changed_meanwhile() -> str:
    with in_a_store() as uri:
        pin = open_checkpoint(uri, parts=(), cache="cache").pin
        fsspec.filesystem("memory").pipe("/bucket/5b/vae/config.json", b"{}")
        return opened(pin, "another_cache")


def cut_short() -> str:
    """The store gives less of a file than it says."""
    with in_a_store() as uri:
        pin = open_checkpoint(uri, parts=(), cache="cache").pin
        memory = type(fsspec.filesystem("memory"))

        def short(_: Any, source: str, target: str) -> None:
            Path(target).write_bytes(b"x")

        with patch.object(memory, "get_file", short):
            return opened(pin, "cache")


def without_room() -> str:
    usage = shutil.disk_usage(".")._replace(free=1000)
    with in_a_store() as uri, patch("shutil.disk_usage", return_value=usage):
        return opened(uri, "cache")


def cache_is_a_file() -> str:
    with in_a_store() as uri:
        return opened(uri, "horse.mp4")


def other_folder(change: Callable[[Path], Any]) -> str:
    """What a node says whose folder differs from the driver's of the same path."""
    folder = Path(shutil.copytree("5b", "ckpt"))
    try:
        pin = open_checkpoint("ckpt", parts=()).pin
        change(folder)
        return opened(pin, "cache")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def opened(checkpoint: str | CheckpointPin | None, cache: str) -> str:
    assert checkpoint
    return raised(
        lambda: open_checkpoint(checkpoint, parts=EDITING_PARTS, cache=cache),
        UnsupportedCheckpoint,
        OSError,
    )


FETCHING: Mistakes = {
    "files were replaced in object storage while the job ran": changed_meanwhile,
    "less of a file comes than its size says": cut_short,
    "a disk with 1000 bytes left": without_room,
    "`RETAKE_CACHE` is a file": cache_is_a_file,
    "another checkpoint at the same path": lambda: other_folder(
        lambda f: change_json(f / "vae/config.json", norm_eps=1e-5)
    ),
    "no folder at that path on this node": lambda: other_folder(shutil.rmtree),
}

# Processes


class Ranks:
    """A group of one rank that answers its start, and of each request does what a mistake says."""

    start_message = Start("edits", {}, "cpu")

    def __init__(self, act: Callable[[Rank, socket.socket], Any]) -> None:
        self.act = act

    def ready(self) -> None: ...

    def request(self, message: Any, *, begin: Callable[[], None], **_: Any) -> list[Answer]:
        begin()
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()
        log.write(b"NCCL WARN Cuda failure 'an illegal memory access was encountered'\n")
        rank = Rank(subprocess.Popen(["sleep", "60"]), ours, log)
        talk = Conversation([rank], stall_deadline_s=STALL_S)
        with theirs:
            try:
                theirs.send(numbered(0, to_line(Answer())))
                talk.ask(Start("edits", {}, "cpu"), 60.0)
                theirs.recv(1 << 16)
                threading.Thread(target=self._take, args=(rank, theirs)).start()
                return talk.ask(message)
            finally:
                rank.process.kill()
                talk.close()

    def _take(self, rank: Rank, theirs: socket.socket) -> None:
        theirs.recv(1 << 16)
        self.act(rank, theirs)


def in_a_row(act: Callable[[Rank, socket.socket], Any]) -> str:
    """What the row says of a request during which the rank did this."""
    stage = a_stage(Attempts(Folder("memory://messages"), act.__name__), Ranks(act))
    with patch("cluster.ranks.conversation.CLOSE_S", 0.0):  # `sleep` does not end by itself
        said = str(stage.ask(EncodePrompts(["a zebra"]))[0].error)
    stage.attempts.of(stage._digest(EncodePrompts(["a zebra"]))).answered()
    return said.partition("\nthe tries:")[0]  # which name the machine and the time


def a_stage(attempts: Attempts, ranks: Ranks | None = None) -> GroupStage:
    """A stage with these records of its tries."""
    stage: Any = GroupStage.__new__(GroupStage)
    stage.starting, stage.group, stage.attempts = threading.Lock(), ranks, attempts
    stage.job, stage.fingerprint = SimpleNamespace(cluster=ClusterSettings(), run="r1"), ""
    stage.note = ignore
    stage.report, stage.worked, stage.failed_starts = Unheard(), True, 0
    stage.metrics = SimpleNamespace(at_work=nullcontext)
    return cast(GroupStage, stage)


def reports_and_hangs(_: Rank, theirs: socket.socket) -> None:
    theirs.send(numbered(1, to_line(Progress("inversion step 12 of 50", [1]))))


def is_killed(rank: Rank, theirs: socket.socket) -> None:
    rank.process.kill()
    rank.process.wait()
    theirs.shutdown(socket.SHUT_RDWR)


def never_ready() -> str:
    ours, theirs = socket.socketpair()
    rank = Rank(subprocess.Popen(["sleep", "60"]), ours, tempfile.TemporaryFile())
    talk = Conversation([rank], stall_deadline_s=60)
    with theirs:
        try:
            return raised(lambda: talk.ask(Start("edits", {}, "cpu"), STALL_S), RankGroupFailed)
        finally:
            rank.process.kill()
            talk.close()


# Embeddings in storage


def embedding(change: Callable[[Path], Any]) -> str:
    store = PromptStore(Folder(str(Path("prompts").absolute())))
    store.write("a zebra", torch.zeros(2, 3))
    try:
        change(next(Path("prompts").iterdir()))
        return raised(lambda: store.embedding("a zebra"), RowError)
    finally:
        shutil.rmtree("prompts")


RUNNING: Mistakes = {
    "a rank that hangs": lambda: in_a_row(reports_and_hangs),
    "a rank that hangs before its first step": lambda: in_a_row(lambda *_: None),
    "a rank that is killed": lambda: in_a_row(is_killed),
    "a group that loads the checkpoint for too long": never_ready,
    "the embedding of a prompt, cut off": lambda: embedding(
        lambda file: file.write_bytes(file.read_bytes()[:-4])
    ),
    "the embedding of a prompt, deleted": lambda: embedding(lambda file: file.unlink()),
}

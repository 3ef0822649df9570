"""A rank program without a model: it does what its request tells it to."""

import json
import os
import pathlib
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial

from cluster.ranks.channel import Arrived, Beside, Broken, Channel
from cluster.ranks.messages import EditVideo, EncodePrompts, InvertVideo, Start, parse_request
from cluster.ranks.overlap import Overlap
from cluster.ranks.process import serve
from pipeline.errors import ErrorCode, RowError
from pipeline.records import (
    EditResult,
    Forwards,
    InversionResult,
    Metrics,
    Timings,
    VideoSpec,
)


class AcceleratorError(RuntimeError):
    """As `torch.AcceleratorError`."""


class EndpointConnectionError(Exception):
    """As botocore's, which fsspec lets through."""

    __module__ = "botocore.exceptions"


ERRORS = {
    "row error": RowError(ErrorCode.VIDEO_TOO_SHORT, "has 2 frames"),
    "bug": KeyError("surprise"),
    "memory": MemoryError("no more"),
    "full GPU": AcceleratorError("CUDA error: out of memory"),
    "illegal access": AcceleratorError("an illegal memory access was encountered"),
    "library": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"),
    "full disk": OSError(28, "No space left on device"),
    "quits": SystemExit("it gives up"),
    "no bucket": EndpointConnectionError("could not connect to the endpoint"),
}


@dataclass(frozen=True)
class Command:
    """What a rank shall do: `echo`, `die`, `exit`, `hang`, or an error of `ERRORS`.

    `steps` reports so many steps and does `then`; `last` reports progress for so many seconds.
    `meet` does `then` once another request has arrived, or none comes; `meet beside` does so beside
    the work on the next request, once that has begun; `linger` hangs where it is the second.

    Args:
        rank: the one that it is for; by default every one.
        others: what the others do instead.
    """

    op: str
    text: str | None = None
    rank: str | None = None
    others: str | None = None
    then: str | None = None


def as_its_name_says(video: VideoSpec) -> None:
    """Dies or hangs or refuses where the video's name says so."""
    name = video.video
    once = pathlib.Path(f"{name}.tried")
    if name.endswith("kills") or (name.endswith("kills-once") and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith("hangs"):
        time.sleep(3600)
    if name.endswith("unreadable"):
        raise RowError(ErrorCode.VIDEO_UNREADABLE, "no video")
    if name.endswith("memory"):
        raise ERRORS["memory"]


def invert(video: VideoSpec) -> InversionResult:
    as_its_name_says(video)
    return InversionResult(
        trajectory="k",
        frames=5,
        height=8,
        width=8,
        fps=8.0,
        source="s",
        forwards=6,
        timings=Timings(read=1.0),
        trajectory_damage="cut short" if video.video.endswith("damaged") else None,
    )


def edit(video: VideoSpec, inversion: InversionResult, number: int = 0) -> list[EditResult]:
    as_its_name_says(video)
    damage = "altered" if video.video.endswith("altered") else inversion.trajectory_damage
    return [
        EditResult(
            edit_id=one.edit_id,
            output=f"edits/{one.edit_id}.mp4",
            guidance_scale=6.0 if one.guidance_scale is None else one.guidance_scale,
            seed=1,
            metrics=Metrics(flicker=0.5),
            forwards=Forwards(plain=2, injected=4),
            timings=Timings(reconstruct=3.0),
            trajectory_damage=damage,
        )
        for one in video.edits
    ]


class Count:
    """How often something happened, with waiting for the second time."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.number = 0

    def add(self) -> None:
        with self.changed:
            self.number += 1
            self.changed.notify_all()

    def second(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.number > 1, MEET_S)


MEET_S = 1.0
ARRIVED, BEGUN, OVERLAP = Count(), Count(), Overlap()
BROKEN, START = threading.Event(), list[Start]()


def do(op: str, text: str | None) -> None:
    if op == "die":
        print("the end of a log", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    if op == "exit":
        os._exit(int(text or 1))
    if op == "hang":
        time.sleep(3600)
    if op in ERRORS:
        raise ERRORS[op]


def do_beside(then: str) -> None:
    BEGUN.second()
    do(then, None)


def obey(
    channel: Channel,
    op: str,
    text: str | None,
    rank: str | None,
    others: str | None,
    then: str | None,
) -> dict:
    BEGUN.add()
    if BROKEN.is_set():
        raise ERRORS["illegal access"]
    op = op if rank in (None, os.environ["RANK"]) else others or ""
    if op == "steps":
        for step in range(int(text or 0)):
            channel.progress(f"step {step + 1} of 9")
        op = then or ""
    if op == "last":
        until = time.monotonic() + float(text or 0)
        while time.monotonic() < until:
            time.sleep(0.1)
            channel.progress("one more")
    if op == "meet":
        ARRIVED.second()
        op = then or ""
    if op == "meet beside":
        OVERLAP.beside(partial(do_beside, then or ""))
    if op == "linger" and BEGUN.number > 1:
        time.sleep(3600)
    if op == "break":
        BROKEN.set()
    if op == "no memory" and START[0].branches_at_once != int(text or 1):
        raise ERRORS["memory"]
    if op == "no JSON":
        return {"path": pathlib.Path("x")}
    do(op, text)
    return {"rank": int(os.environ["RANK"]), "echo": text}


def prepare(start: Start, channel: Channel):
    store(asdict(start))
    START.append(start)
    if start.settings.get("refuse"):
        raise ValueError(start.settings["refuse"])
    # What the environment names is a file that a test makes and takes away.
    if os.path.exists(os.environ.get("REFUSE_BESIDE", "")):
        raise ValueError("no such checkpoint now")
    if start.settings.get("hang"):
        time.sleep(3600)
    print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "is ready")
    return {
        Arrived: lambda *_: ARRIVED.add(),
        Beside: OVERLAP.begun,
        Broken: BROKEN.is_set,
        Command: partial(obey, channel),
        InvertVideo: invert,
        EditVideo: edit,
        EncodePrompts: len_of,
    }


def len_of(prompts: list[str]) -> int:
    return len(prompts)


def read(line: bytes):
    values = json.loads(line)
    store(values)
    return Command(**values) if "op" in values else parse_request(line)


def store(message: dict) -> None:
    """Put a message where a test reads it."""
    if path := os.environ.get("SENT_MESSAGES"):
        with open(path, "a") as file:
            file.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    serve(prepare, read)

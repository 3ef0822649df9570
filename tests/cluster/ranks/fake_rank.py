"""A rank program without a model: it does what its request tells it to."""

import json
import os
import pathlib
import signal
import sys
import time

from cluster.ranks.process import serve_requests
from pipeline.errors import ErrorCode, RowError


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
    "no bucket": EndpointConnectionError("could not connect to the endpoint"),
}


def a_row(message):
    """Answers as a rank with a model does, or dies or hangs where the video's name says so."""
    video = message["video"]["video"]
    once = pathlib.Path(f"{video}.tried")
    if video.endswith("kills") or (video.endswith("kills-once") and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if video.endswith("hangs"):
        time.sleep(3600)
    if video.endswith("unreadable"):
        raise RowError(ErrorCode.VIDEO_UNREADABLE, "no video")
    if message["op"] == "invert":
        inverted = {"key": "k", "frames": 5, "height": 8, "width": 8, "fps": 8.0}
        return {
            **inverted,
            "source": "s",
            "certificate": {},
            "forwards": 6,
            "timings": {"read": 1.0},
            "damaged": "cut short" if video.endswith("damaged") else None,
        }
    return [
        {
            "edit_id": edit["edit_id"],
            "output": f"edits/{edit['edit_id']}.mp4",
            "guidance_scale": edit.get("guidance_scale", 6.0),
            "seed": 1,
            "metrics": {"flicker": 0.5},
            "forwards": {"plain": 2, "injected": 4},
            "timings": {"reconstruct": 3.0},
            "damaged": "altered" if video.endswith("altered") else message["inverted"]["damaged"],
        }
        for edit in message["edits"]
    ]


def keep(message):
    """Writes a message down, in the file that a test names."""
    if kept := os.environ.get("KEPT_MESSAGES"):
        with open(kept, "a") as file:
            file.write(json.dumps(message) + "\n")


def prepare(start):
    keep(start)
    if start.get("refuse"):
        raise ValueError(start["refuse"])
    # What the environment names is a file that a test makes and takes away.
    if os.path.exists(os.environ.get("REFUSE_BESIDE", "")):
        raise ValueError("no such checkpoint now")
    if start.get("hang"):
        time.sleep(3600)
    print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "is ready")

    def handle(message):
        keep(message)
        if "prompts" in message:
            return len(message["prompts"])
        if "video" in message:
            return a_row(message)
        mine = message.get("rank", os.environ["RANK"]) == os.environ["RANK"]
        op = message["op"] if mine else message.get("others", "")
        if op == "die":
            print("these are my last words", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)
        if op == "exit":
            os._exit(7)
        if op == "hang":
            time.sleep(3600)
        if op in ERRORS:
            raise ERRORS[op]
        return {"rank": int(os.environ["RANK"]), "echo": message.get("text")}

    return handle


if __name__ == "__main__":
    serve_requests(prepare)

"""A rank program without a model: it does what its request tells it to."""

import os
import pathlib
import signal
import sys
import time

from cluster.rank_process import serve_requests
from pipeline.errors import ErrorCode, RowError


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
        }
        for edit in message["edits"]
    ]


def prepare(start):
    if start.get("refuse"):
        raise ValueError(start["refuse"])
    if start.get("hang"):
        time.sleep(3600)
    print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "is ready")

    def handle(message):
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
        if op == "row error":
            raise RowError(ErrorCode.VIDEO_TOO_SHORT, "has 2 frames")
        if op == "bug":
            raise KeyError("surprise")
        if op == "memory":
            raise MemoryError("no more")
        return {"rank": int(os.environ["RANK"]), "echo": message.get("text")}

    return handle


if __name__ == "__main__":
    serve_requests(prepare)

"""The program of one rank: it loads what its stage needs and serves its owner's requests.

    python -m cluster.rank_process        (started by `cluster.ranks.RankGroup`)

The first message says which work the rank is for and with which settings; every further one is a
request. A row that fails is answered with its error code, and the rank goes on, unless the failure
left it unfit for more: then it says so, and its owner ends it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from cluster.ranks.owner import CHANNEL, UNFIT
from pipeline.errors import ErrorCode, RowError

Handler = Callable[[Mapping[str, Any]], Any]

STORAGE_CLIENTS = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google"}
"""Packages below fsspec whose errors are not all OSErrors."""
ACCELERATOR = ("CUDA", "cuDNN", "CUBLAS", "NCCL")
"""What stands in the text of an error of the accelerator that torch raises as a RuntimeError."""


def main() -> None:
    serve_requests(prepare)


def prepare(start: Mapping[str, Any]) -> Handler:
    """Load what the work needs, and return what answers its requests."""
    from pydantic import TypeAdapter

    from pipeline.settings import EditingSettings

    settings = TypeAdapter(EditingSettings).validate_python(start["settings"])
    if start["work"] == "prompts":
        return _prompt_handler(settings, start["device"])
    return _editing_handler(settings, start)


def serve_requests(prepare: Callable[[Mapping[str, Any]], Handler]) -> None:
    """Answer the owner's messages until it goes away.

    Args:
        prepare: takes the first message and returns the handler of all others. A handler's result
            goes back as `{"result": ...}`; a `RowError` as its code and message; every other
            exception as the code of its kind, with the place where it was raised.
    """
    channel = socket.socket(fileno=int(os.environ[CHANNEL]))
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_lines, args=(channel, messages), daemon=True).start()
    try:
        handle = prepare(json.loads(messages.get()))
    except Exception as error:
        traceback.print_exc()
        _answer(channel, {"refusal": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    _answer(channel, {"ready": os.getpid()})
    while True:
        _answer(channel, _handled(handle, json.loads(messages.get())))


def _handled(handle: Handler, message: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"result": handle(message)}
    except RowError as error:
        return {"error_code": error.code, "error": error.message}
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        answer = {
            "error_code": _code(error),
            "error": f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})",
        }
        return answer | ({UNFIT: True} if _leaves_unfit(error) else {})


def _code(error: Exception) -> ErrorCode:
    names = {kind.__name__ for kind in type(error).__mro__}
    packages = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    full = _is_of_accelerator(error) and "out of memory" in str(error)
    if full or names & {"OutOfMemoryError", "MemoryError"}:
        return ErrorCode.OUT_OF_MEMORY
    if isinstance(error, OSError) or packages & STORAGE_CLIENTS:
        return ErrorCode.STORAGE
    return ErrorCode.INTERNAL


def _leaves_unfit(error: Exception) -> bool:
    """Whether this process cannot take another request.

    After most errors of an accelerator every further call to it fails. And a group's ranks, which
    raise a RowError together, may have left their collectives at different places.
    """
    if int(os.environ["WORLD_SIZE"]) > 1:
        return True
    return _is_of_accelerator(error) and _code(error) != ErrorCode.OUT_OF_MEMORY


def _is_of_accelerator(error: Exception) -> bool:
    if type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ACCELERATOR)


def _editing_handler(settings: Any, start: Mapping[str, Any]) -> Handler:
    import torch

    from cluster.ranks.edit_video import edit_video
    from cluster.ranks.editing import EditingProcess
    from cluster.ranks.invert_video import invert_video
    from cluster.ranks.requests import EditRequest, Inverted, VideoRequest

    device = _device(start["device"])
    process = EditingProcess(settings, device, _group(settings, start["degrees"], device))
    torch.set_grad_enabled(False)

    def handle(message: Mapping[str, Any]) -> Any:
        request = VideoRequest(**message["video"])
        if message["op"] == "invert":
            return asdict(invert_video(process, request))
        edits = [EditRequest(**edit) for edit in message["edits"]]
        made = edit_video(
            process, request, Inverted(**message["inverted"]), edits, message["source_prompt"]
        )
        return [asdict(edit) for edit in made]

    return handle


def _prompt_handler(settings: Any, kind: str) -> Handler:
    from cluster.ranks.editing import prompt_store
    from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
    from pipeline.model.text_encoder import encode_prompt

    device = _device(kind)
    info = open_checkpoint(settings.checkpoint)
    store = prompt_store(settings, info)
    tokenizer, encoder = load_text_encoder(info, info.dtype(settings.precision, device), device)

    def handle(message: Mapping[str, Any]) -> int:
        missing = [prompt for prompt in message["prompts"] if not store.holds(prompt)]
        for prompt in missing:
            store.write(prompt, encode_prompt(tokenizer, encoder, prompt, info.text_tokens))
        return len(missing)

    return handle


def _group(settings: Any, asked: Mapping[str, Any], device: Any) -> Any:
    """Join this rank's group, `ulysses: auto` made a degree that the checkpoint allows."""
    from pipeline.model.checkpoint import open_checkpoint
    from pipeline.model.parallel.degrees import Degrees, choose_degrees
    from pipeline.model.parallel.group import start

    ring, cfg = asked["ring"], asked["cfg"]
    if asked["ulysses"] == "auto":
        info = open_checkpoint(settings.checkpoint)
        degrees = choose_degrees(info, gpus=int(os.environ["WORLD_SIZE"]), ring=ring, cfg=cfg)
    else:
        degrees = Degrees(asked["ulysses"], ring, cfg)
    return start(**asdict(degrees), device=device)


def _device(kind: str) -> Any:
    import torch

    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _read_lines(channel: socket.socket, messages: SimpleQueue[bytes]) -> None:
    """Queue the owner's lines; end this process at once when the owner is gone."""
    received = bytearray()
    while True:
        try:
            data = channel.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            os._exit(1)
        received += data
        *lines, rest = bytes(received).split(b"\n")
        received = bytearray(rest)
        for line in lines:
            messages.put(line)


def _answer(channel: socket.socket, message: Mapping[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()

"""The program of one rank: it loads what its stage needs and serves its owner's requests.

    python -m cluster.ranks.process       (started by `cluster.ranks.owner.RankGroup`)

The first message says which work the rank is for and with which settings; every further one is a
request. A row that fails is answered with its error code, and the rank goes on, unless it needs a
restart after the failure: then its answer says so, and its owner ends it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from cluster.ranks.messages import (
    Answer,
    EditVideo,
    EncodePrompts,
    InvertVideo,
    Start,
    parse_request,
    to_line,
)
from cluster.ranks.owner import CHANNEL
from pipeline.errors import ErrorCode, RowError
from pipeline.records import from_dict

if TYPE_CHECKING:
    import torch

    from pipeline.model.group import TokenGroup
    from pipeline.settings import EditingSettings

Handler = Mapping[type, Callable[..., Any]]
"""By the type of a request, what answers it: it takes the request's fields by name."""

STORAGE_CLIENTS = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google"}
"""Packages below fsspec whose errors are not all OSErrors."""
ACCELERATOR = ("CUDA", "cuDNN", "CUBLAS", "NCCL")
"""What stands in the text of an error of the accelerator that torch raises as a RuntimeError."""


def prepare(start: Start) -> Handler:
    """Load what the work needs, and return what answers its requests."""
    from pipeline.settings import EditingSettings

    settings = from_dict(EditingSettings, start.settings)
    if start.work == "prompts":
        return _prompt_handler(settings, start.device)
    return _editing_handler(settings, start)


def serve(prepare: Callable[[Start], Handler], read: Callable[[bytes], Any]) -> None:
    """Answer the owner's messages until it goes away.

    Args:
        prepare: takes the first message and returns the handler of all others. What a handler
            returns goes back as the result; a `RowError` as its code and message; every other
            exception as the code of its kind, with the place where it was raised.
        read: a request from its line.
    """
    channel = socket.socket(fileno=int(os.environ[CHANNEL]))
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_lines, args=(channel, messages), daemon=True).start()
    try:
        handle = prepare(Start(**json.loads(messages.get())))
    except Exception as error:
        traceback.print_exc()
        _answer(channel, Answer(refusal=f"{type(error).__name__}: {error}"))
        sys.exit(1)
    _answer(channel, Answer(result=os.getpid()))
    while True:
        request = read(messages.get())
        try:
            answer = Answer(result=plain(handle[type(request)](**values_of(request))))
        except Exception as error:
            answer = failure(error)
        _answer(channel, answer)


def values_of(request: Any) -> dict[str, Any]:
    return {field.name: getattr(request, field.name) for field in fields(request)}


def failure(error: Exception) -> Answer:
    """The answer to a request whose handler raised."""
    if isinstance(error, RowError):
        return Answer(error_code=error.code, error=error.message)
    traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Answer(
        error_code=_code(error),
        error=f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})",
        needs_restart=_needs_restart(error),
    )


def plain(result: Any) -> Any:
    """Records as the values that JSON has."""
    if isinstance(result, list):
        return [plain(item) for item in result]
    return asdict(result) if is_dataclass(result) and not isinstance(result, type) else result


def _code(error: Exception) -> ErrorCode:
    names = {kind.__name__ for kind in type(error).__mro__}
    packages = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    full = _is_of_accelerator(error) and "out of memory" in str(error)
    if full or names & {"OutOfMemoryError", "MemoryError"}:
        return ErrorCode.OUT_OF_MEMORY
    if isinstance(error, OSError) or packages & STORAGE_CLIENTS:
        return ErrorCode.STORAGE
    return ErrorCode.INTERNAL


def _needs_restart(error: Exception) -> bool:
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


def _editing_handler(settings: EditingSettings, start: Start) -> Handler:
    import torch

    from cluster.ranks.edit_video import edit_video
    from cluster.ranks.editing import RankEditor
    from cluster.ranks.invert_video import invert_video

    device = _device(start.device)
    rank = RankEditor.load(settings, device, _group(settings, start, device))
    torch.set_grad_enabled(False)
    return {InvertVideo: partial(invert_video, rank), EditVideo: partial(edit_video, rank)}


def _prompt_handler(settings: EditingSettings, kind: str) -> Handler:
    from cluster.ranks.editing import prompt_store
    from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
    from pipeline.model.text_encoder import encode_prompt

    device = _device(kind)
    info = open_checkpoint(settings.checkpoint)
    store = prompt_store(settings, info)
    tokenizer, encoder = load_text_encoder(info, info.dtype(settings.precision, device), device)

    def encode(prompts: Sequence[str]) -> int:
        missing = [prompt for prompt in prompts if not store.holds(prompt)]
        for prompt in missing:
            store.write(prompt, encode_prompt(tokenizer, encoder, prompt, info.text_tokens))
        return len(missing)

    return {EncodePrompts: encode}


def _group(settings: EditingSettings, start: Start, device: torch.device) -> TokenGroup:
    """Join this rank's group, `ulysses: auto` made a degree that the checkpoint allows."""
    from pipeline.model.checkpoint import open_checkpoint
    from pipeline.model.parallel.degrees import Degrees, choose_degrees
    from pipeline.model.parallel.group import start as join

    if start.ulysses == "auto":
        ranks = int(os.environ["WORLD_SIZE"])
        info = open_checkpoint(settings.checkpoint)
        degrees = choose_degrees(info, gpus=ranks, ring=start.ring, cfg=start.cfg)
    else:
        degrees = Degrees(start.ulysses, start.ring, start.cfg)
    return join(**asdict(degrees), device=device)


def _device(kind: str) -> torch.device:
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


def _answer(channel: socket.socket, answer: Answer) -> None:
    channel.sendall(to_line(answer))


if __name__ == "__main__":
    serve(prepare, parse_request)

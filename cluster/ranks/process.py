"""The program of one rank: it loads what its stage needs and serves its owner's requests.

    python -m cluster.ranks.process       (started by `cluster.ranks.owner.RankGroup`)

The first message says which work the rank is for and with which settings; every further one is a
request. A row that fails is answered with its error code, and the rank goes on, unless it needs a
restart after the failure: then its answer says so, and its owner ends it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from cluster.ranks.channel import Arrived, Beside, Broken, Channel, Handler, whole
from cluster.ranks.failures import failure, several_ranks
from cluster.ranks.messages import (
    Answer,
    EditVideo,
    InvertVideo,
    Start,
    parse_request,
)
from pipeline.imports import large_imports
from pipeline.records import from_dict
from pipeline.redaction import log, log_error, safe_tracebacks

if TYPE_CHECKING:
    import torch

    from pipeline.model.checkpoint import CheckpointInfo
    from pipeline.model.group import TokenGroup
    from pipeline.settings import EditingSettings


def prepare(start: Start, channel: Channel) -> Handler:
    """Load what the work needs, and return what answers its requests.

    Args:
        channel: reports progress to the owner.
    """
    from pipeline.settings import EditingSettings
    from pipeline.storage import wait_long

    wait_long(_reported_by(channel))
    settings = from_dict(EditingSettings, start.settings)
    if start.work == "prompts":
        with large_imports():
            from cluster.ranks.encode_prompts import prompt_handler

        checkpoint = start.checkpoint or settings.checkpoint
        return prompt_handler(settings, checkpoint, _device(start.device), channel.progress)
    return _editing_handler(settings, start, channel)


def _reported_by(channel: Channel) -> Callable[[str], None]:
    """What is called before each pause for storage: the log has each trouble once."""
    last = ""

    def report(text: str) -> None:
        nonlocal last
        channel.progress(text)
        if text != last:
            last = text
            log(text)

    return report


def serve(prepare: Callable[[Start, Channel], Handler], read: Callable[[bytes], Any]) -> None:
    """Answer the owner's messages until it goes away.

    Args:
        prepare: takes the first message and returns the handler of all others. What a handler
            returns goes back as the result; a `RowError` as its code and message; every other
            exception as the code of its kind, with the place where it was raised.
        read: a request from its line.
    """
    channel, handle = Channel.of_this_rank(), dict[type, Callable[..., Any]]()
    requests: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    take = partial(_take, channel, handle, read, requests)
    threading.Thread(target=channel.read, args=(take,), daemon=True).start()
    number, start = requests.get()
    try:
        handle.update(prepare(from_dict(Start, json.loads(start)), channel))
    except Exception as error:
        log_error(error)
        channel.answer(number, Answer(refusal=f"{type(error).__name__}: {error}"))
        sys.exit(1)
    channel.answer(number, Answer(result=os.getpid()))
    beside, broken = handle.get(Beside, list), handle.get(Broken, bool)
    later = ThreadPoolExecutor(1)
    while True:
        number, request = requests.get()
        channel.begin(number)
        began = time.perf_counter()
        try:
            if isinstance(request, Exception):
                raise request
            answer = Answer(result=handle[type(request)](**values_of(request)))
        except Exception as error:
            answer = failure(error)
        answer = replace(answer, seconds=time.perf_counter() - began)
        # One thread answers, in order: where this answer ends the group, that of the request
        # before, whose edits may still be written, is not lost.
        later.submit(_answer_or_end, channel, number, answer, beside(), broken)
        # Outside of the `except`, whose traceback holds tensors.
        if (answer.error_code and several_ranks()) or answer.needs_restart or broken():
            channel.wait_to_go_on(number)


def _take(
    channel: Channel,
    handle: Handler,
    read: Callable[[bytes], Any],
    requests: SimpleQueue[tuple[int, Any]],
    number: int,
    line: bytes,
) -> None:
    """Queue a request, or why it cannot be read; what it can do ahead begins now."""
    try:
        request = read(line) if number else line
        if number and Arrived in handle:
            handle[Arrived](request, channel.at_work(number))
    except Exception as error:
        request = error
    requests.put((number, request))


def _answer_or_end(channel: Channel, number: int, *answer: Any) -> None:
    """Answer a request, as `_answer` does; a process that cannot do so ends.

    What is raised in a pool is seen by nobody: the owner would wait for the answer until it takes
    the group for stalled.
    """
    try:
        _answer(channel, number, *answer)
    except BaseException as error:
        log_error(error)
        os._exit(1)


def _answer(
    channel: Channel,
    number: int,
    answer: Answer,
    beside: Sequence[Future[Any]],
    broken: Callable[[], bool],
) -> None:
    """Answer a request once the work that goes on beside the next one is done."""
    try:
        if not answer.error_code:
            answer = replace(answer, result=plain(whole(answer.result, beside)))
        channel.answer(number, _restarting(answer, broken()))
    except Exception as error:  # what JSON does not know among them
        failed = replace(failure(error, together=False), seconds=answer.seconds)
        channel.answer(number, _restarting(failed, broken()))
    channel.finish(number)


def _restarting(answer: Answer, broken: bool) -> Answer:
    return replace(answer, needs_restart=answer.needs_restart or broken)


def values_of(request: Any) -> dict[str, Any]:
    return {field.name: getattr(request, field.name) for field in fields(request)}


def plain(result: Any) -> Any:
    """Records as the values that JSON has."""
    if isinstance(result, list):
        return [plain(item) for item in result]
    return asdict(result) if is_dataclass(result) and not isinstance(result, type) else result


def _editing_handler(settings: EditingSettings, start: Start, channel: Channel) -> Handler:
    with large_imports():
        import torch

        from cluster.ranks.edit_video import edit_video
        from cluster.ranks.editing import RankEditor
        from cluster.ranks.invert_video import invert_video
        from pipeline.model.checkpoint import EDITING_PARTS, open_checkpoint

    device = _device(start.device)
    info = open_checkpoint(start.checkpoint or settings.checkpoint, parts=EDITING_PARTS)
    rank = RankEditor.load(settings, device, _group(info, start, device), info)
    rank.editor.model.max_branches = start.branches_at_once
    rank.report_to(channel.progress, channel.pulse)
    torch.set_grad_enabled(False)
    return {
        Arrived: lambda request, at_work: rank.read_ahead(request.video, at_work),
        Beside: rank.overlap.begun,
        Broken: lambda: rank.broken,
        InvertVideo: partial(invert_video, rank),
        EditVideo: partial(edit_video, rank),
    }


def _group(info: CheckpointInfo, start: Start, device: torch.device) -> TokenGroup:
    """Join this rank's group, `ulysses: auto` made a degree that the checkpoint allows."""
    from pipeline.model.parallel.degrees import Degrees, choose_degrees
    from pipeline.model.parallel.group import start as join

    if start.ulysses == "auto":
        ranks = int(os.environ["WORLD_SIZE"])
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


if __name__ == "__main__":
    safe_tracebacks()
    serve(prepare, parse_request)

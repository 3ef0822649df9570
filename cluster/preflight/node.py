"""What a node runs to say whether it can work for the job.

A node may lack this package, or have another version of it. So the driver sends the text of this
file, and a new process of the node's Python runs it: the same interpreter, folder and environment
as those of a rank. Only the standard library is imported before the package was looked for.

Each check prints a line of JSON as it ends, so that one that hangs takes no other's answer along.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CODE = ("pipeline", "cluster")
"""What of this package runs on a node."""
READ_AGAIN_S = (0.5, 1.5, 0.0)
"""Network file systems show a new file to other machines a little later."""
CODEC = "libx264"
"""What edits are encoded with."""
TAKEN = ("out of memory", "busy or unavailable")
"""A GPU that someone else uses at the moment is no broken GPU."""

_one_at_a_time = threading.Lock()

Check = Callable[[], str | None]
"""Gives what is wrong, in words; None where all is well."""


def main(request: Mapping[str, Any]) -> None:
    """Make the checks that a request asks for, and print a line for each.

    Args:
        request: `packages` to look for, `checks` by name with the arguments of each, and
            `deadlines_s` by name.
    """
    started = time.monotonic()
    # Storage that cannot be reached is asked for ever longer: twice is enough to find that out.
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
    found = installed(request["packages"])
    _print(check="package", found=found)
    if found["version"] is None:
        return
    ended = {name: threading.Event() for name in request["checks"]}
    for name, arguments in request["checks"].items():
        check = partial(CHECKS[name], **arguments)
        threading.Thread(target=_run, args=(name, check, ended[name]), daemon=True).start()
    for name, event in sorted(ended.items(), key=lambda item: request["deadlines_s"][item[0]]):
        deadline_s = request["deadlines_s"][name]
        if not event.wait(max(0.0, started + deadline_s - time.monotonic())):
            _print(
                check=name, problem=f"its check gave no answer in {deadline_s:g} s. {LATE[name]}"
            )
    os._exit(0)  # a check that hangs would hold the process up


def _run(name: str, check: Check, ended: threading.Event) -> None:
    try:
        problem = check()
    except Exception as error:
        problem = _in_one_line(error)
    _print(check=name, problem=problem)
    ended.set()


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _print(**values: Any) -> None:
    with _one_at_a_time:
        print(json.dumps(values), flush=True)


def installed(packages: Iterable[str]) -> dict[str, Any]:
    """This package and others as they are installed here; none of the others is imported.

    Returns:
        version: of this package; None where it cannot be imported, and `error` says why.
        code: a hash of its modules that run on a node.
        place: the folder that it is in.
        packages: the version of each of the others; None of one that is not installed.
    """
    found: dict[str, Any] = {"packages": {name: _version(name) for name in packages}}
    none = found | {"version": None, "code": "", "place": sys.executable}
    try:
        modules = [importlib.import_module(name) for name in CODE]
    except Exception as error:
        return none | {"error": _in_one_line(error)}
    # A file `pipeline.py` has no `__path__`; a folder without `__init__.py` has no `__file__`.
    folders = [Path(next(iter(getattr(m, "__path__", [str(m.__file__)])))) for m in modules]
    version = getattr(modules[0], "__version__", None)
    if version is None or len({folder.parent for folder in folders}) > 1:
        listed = ", ".join(map(str, folders))
        return none | {"error": f"other packages have the names {' and '.join(CODE)}: {listed}"}
    try:
        importlib.import_module("pipeline.storage")  # once, before threads all do
    except Exception as error:
        return none | {"error": _in_one_line(error)}
    return found | {"version": version, "code": _hash(folders), "place": str(folders[0].parent)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hash(folders: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def check_output(uri: str, theirs: str, ours: str, content: str) -> str | None:
    """Read what the driver wrote to the output folder, and write a file that it reads.

    Args:
        theirs, ours: the names of the two files.
        content: of both.
    """
    from pipeline.locations import is_local
    from pipeline.storage import Folder, explain

    folder = Folder(uri)
    try:
        read = _read_new(folder, theirs)
    except FileNotFoundError:
        # Nothing is written then: it would be left behind on a disk that is the node's own.
        if is_local(uri):
            return (
                "what this machine writes there is not seen on the node: the folder is not "
                "shared. Take one of a file system that all of them mount at the same path, or "
                "one in object storage, as s3://bucket/folder"
            )
        return (
            "what this machine writes there is not found on the node. Give the node the same "
            "endpoint, region and credentials of the storage in its environment"
        )
    except Exception as error:  # each storage has its own kinds of failure
        return f"{_plain(explain(error, uri).text, theirs)} (read on the node)"
    if read.decode(errors="replace") != content:
        return "the node reads another file than this machine wrote: mount it without a cache"
    try:
        folder.write(ours, content.encode())
    except Exception as error:
        return f"{_plain(explain(error, uri, 'written').text, ours)} (written on the node)"
    return None


def _plain(text: str, name: str) -> str:
    """A message without the name of a file that is nobody's business: one for all nodes."""
    return text.replace(f"/{name}", "").replace(f"{name}: ", "")


def _read_new(folder: Any, name: str) -> bytes:
    """A file that another machine has just written."""
    for pause in READ_AGAIN_S if folder.is_local else (0.0,):
        try:
            return folder.read(name)
        except FileNotFoundError:
            if not pause:
                raise
            time.sleep(pause)
    raise AssertionError("the last pause is none")


def check_checkpoint(uri: str, pin: Mapping[str, Any] | None) -> str | None:
    """Whether the checkpoint can be had here, without its weights.

    Args:
        pin: what the driver has opened, as plain values.
    """
    from pipeline.errors import UnsupportedCheckpoint
    from pipeline.model.checkpoint import CheckpointPin, open_checkpoint
    from pipeline.storage import explain

    try:
        open_checkpoint(CheckpointPin(**pin) if pin else uri, parts=())
    except UnsupportedCheckpoint as error:
        return f"{error} (on the node)".removeprefix(f"checkpoint {uri!r}: ")
    except Exception as error:  # each storage has its own kinds of failure
        return f"{explain(error, uri).text} (read on the node)"
    return None


def check_video(uri: str) -> str | None:
    """Whether a video that the driver finds is found here."""
    from pipeline.errors import ErrorCode, RowError
    from pipeline.storage import check_file

    try:
        check_file(uri)
    except RowError as error:
        missing = error.code == ErrorCode.VIDEO_NOT_FOUND  # its text looks for a wrong name
        return (
            f"{f'{uri}: is not found there' if missing else error.message}. This machine finds "
            "it: take a file system that all nodes mount at "
            "the same path, or object storage that all of them may read"
        )
    return None


def check_decoding() -> str | None:
    """Encode a clip of a few frames in memory, and decode it."""
    try:
        import av

        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as output:
            stream: Any = output.add_stream(CODEC, rate=8)
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
            for _ in range(3):
                output.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
            output.mux(stream.encode())
        file.seek(0)
        with av.open(file, "r") as container:
            frames = len(list(container.decode(video=0)))
    except Exception as error:
        return (
            f"PyAV does not work on the node: {_in_one_line(error)}. Install the wheel of `av` "
            "from PyPI there"
        )
    return None if frames == 3 else f"PyAV decodes {frames} of 3 frames on the node"


def check_gpus(gpus: int, load: bool = True) -> str | None:
    """Whether torch can work on the GPUs of this machine.

    Args:
        gpus: how many Ray counts here.
        load: import torch and try each GPU. Else only files are read, and the driver is asked for
            its version.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None  # that it is missing is found with the packages
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    build = dict(re.findall(r"^(__version__|cuda|hip|xpu)\b[^=\n]*= *'([^']+)'", text, re.M))
    torch = f"torch {build.get('__version__', '')}"
    if not build.keys() & {"cuda", "hip", "xpu"}:
        return (
            f"{torch} is built without CUDA, and Ray counts {_gpus(gpus)} there. Install a "
            "build with CUDA (https://pytorch.org/get-started/locally), or set cluster.device: cpu"
        )
    if "cuda" in build and (problem := driver_problem(torch, build["cuda"])):
        return problem
    return _torch_problem(torch, gpus) if load else None


def driver_problem(torch: str, cuda: str, library: str = "libcuda.so.1") -> str | None:
    """Whether the GPU driver is there and new enough, without a CUDA context.

    A driver runs what is built for any CUDA of its own major version, and for older ones.
    """
    built = f"{torch} is built for CUDA {cuda}"
    try:
        driver = ctypes.CDLL(library)
        number = ctypes.c_int()
        failed = driver.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return (
            f"{built}, and there is no NVIDIA driver ({library}). Install one; a container needs "
            "to be started with the GPUs (`docker run --gpus all`)"
        )
    have = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if failed or number.value // 1000 >= int(cuda.partition(".")[0]):
        return None
    return (
        f"{built}, and the NVIDIA driver there supports CUDA up to {have}. Update the driver, or "
        f"install a build of torch for CUDA {have.partition('.')[0]} or older "
        "(https://pytorch.org/get-started/previous-versions)"
    )


def _torch_problem(name: str, gpus: int) -> str | None:
    """Try each GPU. The process ends soon, and its CUDA contexts with it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # from Ray, since the task reserves none
        del os.environ["CUDA_VISIBLE_DEVICES"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch

        available = torch.cuda.is_available()
    if not available:
        words = [" ".join(str(one.message).split()) for one in caught if "CUDA" in str(one.message)]
        why = words[-1] if words else "torch.cuda.is_available() is false, without a reason"
        return f"{name} cannot use the {_gpus(gpus)} that Ray counts there: {why}; see `nvidia-smi`"
    if (count := torch.cuda.device_count()) < gpus:
        return f"{name} sees {count} of the {_gpus(gpus)} that Ray counts there; see `nvidia-smi`"
    for device in range(count):
        try:
            torch.zeros(1, device=f"cuda:{device}").cpu()
        except Exception as error:
            text = _in_one_line(error)
            if not any(words in text for words in TAKEN):
                return f"{name} cannot use the GPU {torch.cuda.get_device_name(device)}: {text}"
    return None


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count != 1)}"


CHECKS: Mapping[str, Callable[..., str | None]] = {
    "output": check_output,
    "checkpoint": check_checkpoint,
    "video": check_video,
    "decoding": check_decoding,
    "gpus": check_gpus,
}
"""By the name that a request has for it."""

LATE: Mapping[str, str] = {
    **dict.fromkeys(
        ("output", "checkpoint", "video"),
        "The node cannot reach it, or a mount there hangs: list it on that node by hand",
    ),
    "decoding": "The node is too busy, or its Python lies on a disk that hangs",
    "gpus": "A GPU there hangs (see `nvidia-smi`), or torch lies on a disk that is slow",
}
"""What it may be where a check gives no answer, and what to do."""

if __name__ == "__main__":
    main(json.load(sys.stdin))

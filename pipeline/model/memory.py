"""How much memory a device has left, and what to do where it runs out.

What needs much memory asks `DeviceMemory` first, tries under `attempt`, and takes a smaller step
where the memory runs out all the same. Importing this costs no torch.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.model.footprint import Part, weight_bytes
from pipeline.settings import Weights

if TYPE_CHECKING:
    import torch

    from pipeline.model.checkpoint import CheckpointInfo

T = TypeVar("T")

HEADROOM = {"cpu": 0.5, "gpu": 0.85}
"""The share of the free memory that a plan may count on. On a GPU kernels take workspaces, and the
allocator's blocks never fit exactly; on a CPU there are other processes, and no second try: the
kernel kills the process."""

HOST_FILES = Path("/")
"""Where the files of the kernel lie."""
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number near 2**63 where there is no limit
_TEXTS = (
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine",
    "t allocate memory",
    "not enough memory",
    "can't start new thread",
)
"""Of errors that torch raises as plain RuntimeErrors: CUDA, cuDNN and cuBLAS; a convolution, which
drops each engine of cuDNN whose workspace finds no room and at last has none left; the CPU's
allocator on Linux and elsewhere."""


class Memory(Protocol):
    """The memory of one device, as the code that needs much of it sees it."""

    def free(self) -> int | None:
        """Bytes that can still be allocated; None where that is not known."""

    def total(self) -> int | None:
        """Bytes that the device has, or that this process may use of them; None: not known."""

    def release(self) -> None:
        """Give unused memory back. Only outside of an `except`: its traceback holds tensors."""


@dataclass(frozen=True)
class OutOfMemory:
    """What `attempt` returns where memory ran out: the error's text, and nothing that it held."""

    message: str


class DeviceMemory:
    """The memory of a device of torch (`Memory`).

    Args:
        device: a GPU, or the CPU, where the system and this process' cgroups set the limit.
    """

    def __init__(self, device: torch.device | str) -> None:
        import torch

        self.device = torch.device(device)

    def free(self) -> int | None:
        if self.device.type == "cuda":
            import torch

            left, _ = torch.cuda.mem_get_info(self.device)
            used = torch.cuda.memory_allocated(self.device)
            left += torch.cuda.memory_reserved(self.device) - used
            return max(0, min(left, (self.total() or left) - used))
        return host_free() if self.device.type == "cpu" else None

    def total(self) -> int | None:
        if self.device.type == "cuda":
            import torch

            # A limit that `set_per_process_memory_fraction` set is not in what the driver says.
            index = self.device.index  # which torch wants here, and nowhere else
            place = torch.cuda.current_device() if index is None else index
            fraction = torch.cuda.get_per_process_memory_fraction(place)
            return int(torch.cuda.mem_get_info(self.device)[1] * fraction)
        return host_total() if self.device.type == "cpu" else None

    def release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


def most_held(device: torch.device) -> int | None:
    """Bytes of a GPU that this process' tensors have taken at most; None of other devices."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def attempt(work: Callable[[], T]) -> T | OutOfMemory:
    """What `work` returns, or that memory ran out.

    When this returns the exception is gone, and with its traceback the tensors of its frames: now
    `Memory.release` can give them back.
    """
    try:
        return work()
    except Exception as error:
        return OutOfMemory(out_of_memory_text(error))


def out_of_memory_text(error: Exception) -> str:
    """What an exception says of memory that ran out; raises it where it is another one."""
    if not is_out_of_memory(error):
        raise error
    return f"{type(error).__name__}: {error}".splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or this machine has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def usable(memory: Memory, device: torch.device | str) -> float:
    """The bytes that a plan may count on; infinite where nothing is known."""
    free = memory.free()
    if free is None:
        return float("inf")
    return free * HEADROOM["cpu" if str(device).startswith("cpu") else "gpu"]


def check_room(
    info: CheckpointInfo,
    part: Part,
    bytes_a_value: int,
    memory: Memory,
    device: torch.device | str,
    weights: Weights = "native",
) -> None:
    """Whether a device has room for the weights of a checkpoint's part, before they are read.

    Raises:
        MemoryError: it has not; the text says how much is needed and free, and the way out.
    """
    needed, free = weight_bytes(info, part, bytes_a_value, weights), memory.free()
    if free is not None and needed > free:
        raise MemoryError(
            f"{info.path / part}: the weights take {gigabytes(needed)}, and {gigabytes(free)} of "
            f"{gigabytes(memory.total())} are free on {device}. End what else "
            "uses the device, take one with more memory, or a smaller checkpoint"
        )


def host_buffer(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Room in host memory, float32, for what a device gives piece by piece.

    With `copy_(piece, non_blocking=True)` the device goes on meanwhile; `wait_for` it before the
    pieces are read.
    """
    import torch

    return torch.empty(tuple(shape), dtype=torch.float32, pin_memory=device.type == "cuda")


def wait_for(device: torch.device) -> None:
    """Return when a device has done all that it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def gigabytes(count: int | float | None) -> str:
    """A number of bytes as a person reads it: `15.4 GB`."""
    return "an unknown amount" if count is None else f"{count / 1e9:.1f} GB"


def host_free() -> int | None:
    """Bytes that this process can still take of the machine's memory."""
    left = [size for size in (_meminfo("MemAvailable"), *_cgroup_room()) if size is not None]
    if left:
        return max(0, min(left))
    total = _physical()
    return total and total // 2  # no system but Linux says how much is free


def host_total() -> int | None:
    """Bytes of memory that this machine has, or that this process may use of them."""
    limits = [limit for limit, _ in _cgroups()]
    known = [size for size in (_meminfo("MemTotal") or _physical(), *limits) if size]
    return min(known, default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _meminfo(name: str) -> int | None:
    for line in _lines(HOST_FILES / "proc/meminfo"):
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


def _cgroup_room() -> Iterator[int]:
    return (limit - used for limit, used in _cgroups())


def _cgroups() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each cgroup that this process is in and that has a limit."""
    for line in _lines(HOST_FILES / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = HOST_FILES / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        limit_file, used_file, prefix = (
            names if controllers else ("memory.max", "memory.current", "")
        )
        # Active ones too: the weights are, once two processes have read them.
        files = [f"{prefix}{kind}_file" for kind in ("active", "inactive")]
        # In a container its own cgroup is mounted as the root, whatever the path says.
        below = root / path.strip("/")
        for folder in {root, below, *below.parents}:
            if not folder.is_relative_to(root):
                continue
            limit = _number(folder / limit_file)
            used = _number(folder / used_file)
            if limit is not None and used is not None and limit < _NO_LIMIT:
                yield limit, used - _statistics(folder / "memory.stat", files)


def _number(file: Path) -> int | None:
    text = next(_lines(file), "")
    return int(text) if text.isdigit() else None


def _statistics(file: Path, names: Collection[str]) -> int:
    """Lines of a `memory.stat`: pages of files count as used, and are given back when needed."""
    lines = (line.partition(" ") for line in _lines(file))
    return sum(int(value) for key, _, value in lines if key in names)


def _lines(file: Path) -> Iterator[str]:
    try:
        yield from file.read_text().splitlines()
    except OSError:
        return

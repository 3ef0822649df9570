"""A stand-in for a GPU without numbers: what runs on the `meta` device, counted and checked.

Every operation has its real shapes, dtypes and devices there, and no data. What a program asks of
a GPU's numbers is answered as a GPU would if all of them were finite.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_MOVES = ("aten._to_copy.default", "aten.copy_.default")


class MetaDevice:
    """A context in which the `meta` device behaves as a GPU does.

    Args:
        modules: their weights are on the device before; they are not counted as activations.

    Attributes:
        reads: what the host read of the device, "a value" or a shape: it waits for each.
        writes: the shapes of tensors that it sent there and waited for.
    """

    def __init__(self, *modules: torch.nn.Module) -> None:
        self._work = _Work({key for module in modules for key in _storages(module)})
        self._stack = ExitStack()
        self._modules = modules  # alive as long as their storages are told apart by address

    def __enter__(self) -> MetaDevice:
        for mode in (_FlashAttention(), self._work):
            self._stack.enter_context(mode)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    @property
    def peak(self) -> int:
        """The most bytes that activations took at once since the context or `start` began."""
        return self._work.peak

    @property
    def flops(self) -> int:
        """FLOPs of matrix products, attention and convolutions since the context began."""
        return self._work.flops

    @property
    def reads(self) -> list[str]:
        return self._work.reads

    @property
    def writes(self) -> list[tuple[int, ...]]:
        return self._work.writes

    def start(self) -> None:
        """Count the peak anew, from what is alive now."""
        self._work.peak = self._work.live


class _Work(TorchDispatchMode):
    """FLOPs, and the bytes of all storages that are alive at once; and no mix of devices."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self.reads: list[str] = []
        self.writes: list[tuple[int, ...]] = []
        self._weights = weights
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        places = {
            x.device.type
            for x in tree_leaves((args, kwargs))
            if isinstance(x, Tensor) and x.dim() > 0
        }
        if len(places) > 1 and str(func) not in _MOVES:
            raise RuntimeError(f"{func} of tensors on {sorted(places)}: a GPU would refuse it")
        out = self._as_read_by_the_host(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.device.type == "meta":
                self._add(x)
        return out

    def _as_read_by_the_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What the host gets where it reads from the device: 1, or tensors of zeros."""
        name = str(func)
        if name == "aten._to_copy.default" and args[0].device.type == "cpu":
            if str(kwargs.get("device")) == "meta" and not kwargs.get("non_blocking"):
                self.writes.append(tuple(args[0].shape))
        if name == "aten._local_scalar_dense.default" and args[0].device.type == "meta":
            self.reads.append("a value")
            return 1
        if name == "aten._to_copy.default" and _from_device(args[0], kwargs.get("device")):
            self.reads.append(str(tuple(args[0].shape)))
            dtype = kwargs.get("dtype") or args[0].dtype
            return torch.zeros((), dtype=dtype).expand(args[0].shape)
        if name == "aten.copy_.default" and _from_device(args[1], args[0].device):
            self.reads.append(str(tuple(args[1].shape)))
            return args[0].zero_()
        return None

    def _add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in self._weights:
            return

        def freed(_: Any) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


class _FlashAttention(TorchFunctionMode):
    """Attention as a flash kernel does it; the meta device would take the one that keeps scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].device.type == "meta":
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def _from_device(x: Tensor, to: torch.device | str | None) -> bool:
    return x.device.type == "meta" and to is not None and torch.device(to).type == "cpu"


def _storages(module: torch.nn.Module) -> Iterator[int]:
    for x in (*module.parameters(), *module.buffers()):
        yield x.untyped_storage()._cdata

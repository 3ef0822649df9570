"""Has coverage look away while packages that are not ours are imported.

`tests.run` puts this folder on PYTHONPATH, so Python runs this module at the start of every process
of the tests. Where Python calls a tracer it runs a third to a half slower, and most of what a rank
or an actor does in a test is to import torch, diffusers and Ray.
"""

import importlib.machinery
import sys
from types import ModuleType

OURS = ("pipeline", "cluster", "jobs", "tests")


def _call() -> None:
    """Coverage's tracer takes its place in the interpreter with the next call that it sees."""


_run_module = importlib.machinery.SourceFileLoader.exec_module


def _exec_module(self: importlib.machinery.SourceFileLoader, module: ModuleType) -> None:
    tracer = sys.gettrace()
    if tracer is None or module.__name__.partition(".")[0] in OURS:
        _run_module(self, module)
        return
    sys.settrace(None)
    try:
        _run_module(self, module)
    finally:
        sys.settrace(tracer)
        _call()


importlib.machinery.SourceFileLoader.exec_module = _exec_module  # type: ignore[method-assign]

"""Sections: forwards of each kind, and what each way to make them faster gives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline import Editor, EditSpec, Inversion, Reconstruction
from pipeline.algorithm.branches import Branch
from pipeline.model import footprint
from pipeline.model.scheduler import schedule_from_config
from pipeline.model.transformer import VelocityModel
from pipeline.plan import denoising_steps, highest_stored
from pipeline.quality.metrics import signal_to_error_db
from pipeline.settings import Speed
from pipeline.trajectories.trajectory import Trajectory
from tests.benchmarks.gpu.card import GB, NATIVE, Bench, gigabytes, host_waits

STEPS, EDITS = 50, 4
"""Of the edit whose seconds are compared with the published ones."""
CACHED_STEPS = 5
NAMES = {"compile": "compiled", "fp8": "fp8, compiled", "sage": "SageAttention"}
WAYS = {
    "compile": Speed(compile=True),
    "fp8": Speed(compile=True, weights="fp8"),
    "sage": Speed(compile=False, attention="sage"),
}
"""The ways to make a forward faster, by section."""


@torch.no_grad()
def forwards(bench: Bench) -> Iterator[list[str]]:
    """A plain forward, and steps of K edits with their reference; memory beside the count."""
    yield ["forwards", "seconds", "speed", "peak", "counted", "host waits"]
    model = bench.transformer()
    seconds, flops = dict[tuple[int, bool], float](), flops_of(bench)
    kinds = [(0, True), *((k, True) for k in bench.sizes.edits), (max(bench.sizes.edits), False)]
    if EDITS in bench.sizes.edits:
        kinds.insert(-1, (EDITS, False))
    for edits, guided in dict.fromkeys(kinds):
        call = a_call(bench, edits, guided=guided)
        work = partial(model.predict, *call)
        # One edit's step has warmed up all that more edits need, which take longer.
        repeats, warm = (2, True) if edits <= 1 else (1, False)
        took, peak = bench.measured(work, repeats, warm=warm)
        seconds[edits, guided] = took
        count = len(call[0]) if edits else 0
        counted = footprint.transformer_bytes(
            bench.sizes.info, bench.tokens, 1, bench.dtype.itemsize,
            batch=count + 1, references=int(edits > 0),
        )  # fmt: skip
        name = "1 plain" if not edits else f"K = {edits}, {'' if guided else 'not '}guided"
        waits = str(host_waits(bench, work)) if edits <= 1 else ""
        worked = flops["plain"] + count * flops["injected"]
        yield [name, f"{took:.3f}", bench.speed(worked, took), gigabytes(peak),
               gigabytes(counted / GB), waits]  # fmt: skip
        if edits == 1:
            keep_native(bench, model, seconds[0, True], (took - seconds[0, True]) / 2)
            injected = bench.found.seconds["native"][1]
            yield ["1 injected", f"{injected:.3f}", bench.speed(flops["injected"], injected)]
    if (EDITS, False) in seconds:
        once, guided_steps, others = calls_of_an_edit()
        whole = once * seconds[0, True] + guided_steps * seconds[EDITS, True]
        edit_s = (whole + others * seconds[EDITS, False]) / EDITS
        yield [f"of an edit, K = {EDITS}, {STEPS} steps, the defaults", f"{edit_s:.1f}"]


def compiled(bench: Bench) -> Iterator[list[str]]:
    """Blocks compiled for this shape, against native ones."""
    yield from faster(bench, "compile")


def fp8(bench: Bench) -> Iterator[list[str]]:
    """Linear layers in 8 bits (torchao) and compiled blocks, against native ones."""
    yield from faster(bench, "fp8")


def sage(bench: Bench) -> Iterator[list[str]]:
    """SageAttention, whose scores are in 8 bits, against the native kernel."""
    yield from faster(bench, "sage")


@torch.no_grad()
def faster(bench: Bench, way: str) -> Iterator[list[str]]:
    """One way against native: seconds, how many times faster, what changes."""
    yield ["", f"speed: {changes(WAYS[way])}", "times as fast"]
    if "native" not in bench.found.seconds:
        model = bench.transformer()
        keep_native(bench, model, *plain_and_injected(bench, model))
        del model
        bench.free()
    native, flops = bench.found.seconds["native"], flops_of(bench)
    model = bench.transformer(WAYS[way])
    began = time.perf_counter()
    velocity = model.predict(*a_call(bench, 0))[0][0]
    bench.wait()
    yield ["the first forward, with all that it prepares, s", f"{time.perf_counter() - began:.1f}"]
    found = plain_and_injected(bench, model)
    for name, took, before in zip(("plain", "injected"), found, native, strict=True):
        text = f"{took:.3f} s, {bench.speed(flops[name], took)}"
        yield [f"a forward, {name}", text, f"{before / took:.2f}x"]
    edit_s = seconds_of_an_edit(*found)
    yield [
        f"forwards of an edit, K = {EDITS}, {STEPS} steps, the defaults",
        f"{edit_s:.1f} s",
        f"{seconds_of_an_edit(*native) / edit_s:.2f}x",
    ]
    bench.found.seconds[NAMES[way]], bench.found.edit_s[NAMES[way]] = found, edit_s
    assert bench.found.velocity is not None
    db = signal_to_error_db(bench.found.velocity, velocity.cpu())
    yield ["a plain forward's velocity, against native", f"{db:.1f} dB"]


@torch.no_grad()
def step_cache(bench: Bench) -> Iterator[list[str]]:
    """Steps of an edit that the step cache skips, beside those that are computed."""
    yield ["", "result"]
    edits = min(EDITS, max(bench.sizes.edits))
    took, skipped_forwards = dict[bool, list[float]](), 0
    for cached in (False, True):
        # At a threshold of 1 every step after the first is skipped.
        speed = Speed(compile=False, step_cache=float(cached), step_cache_steps=(0, 1))
        editor = Editor(
            bench.sizes.info, bench.transformer(speed), bench.codec(None), Random(bench)
        )
        editor.set_progress_bar_config(disable=True)
        editor.model.predict(*a_call(bench, 1))  # picks its kernel, and warms up
        took[cached], peak = seconds_of_steps(bench, editor, edits)
        skipped_forwards = editor.model.forwards.skipped
        name = "with the step cache" if cached else "without"
        yield [f"K = {edits}, {name}: peak above the weights", gigabytes(peak)]
        del editor
        bench.free()
    whole, skipped = (statistics.median(took[cached][1:]) for cached in (False, True))
    wanted = (CACHED_STEPS - 1) * (edits + 1)  # their reference among them
    yield ["forwards that were skipped", f"{skipped_forwards} of {wanted} that may be"]
    if skipped_forwards != wanted:
        raise RuntimeError("the steps below would not be skipped ones")
    yield ["a step, computed", f"{whole:.3f} s"]
    yield ["a step that keeps what the next ones need", f"{took[True][0]:.3f} s"]
    yield ["a step, skipped", f"{skipped:.3f} s, {whole / skipped:.1f} times as fast"]


def seconds_of_steps(bench: Bench, editor: Editor, edits: int) -> tuple[list[float], float | None]:
    """Seconds of each of the last steps of a schedule, not guided, and GB above the start."""
    schedule = schedule_from_config(bench.sizes.info.scheduler, STEPS)
    start = CACHED_STEPS / STEPS
    settings = Reconstruction(
        start=start, guidance_scale=1.0, guidance_steps=(0, 0), edits_at_once=edits
    )
    torch.manual_seed(1)
    latents = torch.stack([bench.latent()] * (CACHED_STEPS + 1))
    trajectory = Trajectory(latents, schedule, bench.sizes.clip[0])
    specs = [settings.filled(EditSpec(prompt=f"edit {i}"), seed=i) for i in range(edits)]
    ends: list[float] = []

    def on_step(*_: Any) -> dict[str, Tensor]:
        bench.wait()
        ends.append(time.perf_counter())
        return {}

    began = time.perf_counter()
    _, peak = bench.measured(
        partial(editor.denoise, trajectory, specs, settings, "", on_step), repeats=1, warm=False
    )
    return [end - before for before, end in zip([began, *ends], ends, strict=False)], peak


@dataclass
class Random:
    """Embeddings of any prompt (`pipeline.model.text_encoder.Embeddings`), drawn at random."""

    bench: Bench

    def embedding(self, prompt: str) -> Tensor:
        return self.bench.prompt(prompt).embedding


def a_call(bench: Bench, edits: int, *, guided: bool = True) -> tuple[list[Branch], int, Any]:
    """The arguments of a step of some edits with the empty reference, or of one plain forward."""
    torch.manual_seed(1)
    x, empty = bench.latent(), bench.prompt("")
    count = 2 * edits if guided else edits
    branches = [Branch(x, bench.prompt(f"{i}"), empty) for i in range(count)]
    return branches or [Branch(x, empty)], 500, x if edits else None


def plain_and_injected(bench: Bench, model: VelocityModel) -> tuple[float, float]:
    """Seconds of a plain and of an injected forward."""
    plain, _ = bench.measured(partial(model.predict, *a_call(bench, 0)))
    three, _ = bench.measured(partial(model.predict, *a_call(bench, 1)))
    return plain, (three - plain) / 2


def keep_native(bench: Bench, model: VelocityModel, plain: float, injected: float) -> None:
    """Keep what a native model did for the sections and files that compare with it."""
    found, flops = bench.found, flops_of(bench)
    found.seconds["native"] = plain, injected
    found.edit_s["native"] = seconds_of_an_edit(plain, injected)
    found.velocity = model.predict(*a_call(bench, 0))[0][0].cpu()
    for name, took in zip(("plain", "injected"), (plain, injected), strict=True):
        if share := bench.mfu(flops[name], took):
            found.shares[f"{name}_mfu"] = share


def flops_of(bench: Bench) -> dict[str, int]:
    """FLOPs of a plain and of an injected forward."""
    info, clip = bench.sizes.info, bench.sizes.clip
    return {
        "plain": footprint.forward_flops(info, *clip),
        "injected": footprint.forward_flops(info, *clip, injected=True),
    }


def calls_of_an_edit() -> tuple[int, int, int]:
    """Plain forwards of the inversion, guided and other steps, for `EDITS` edits of a video."""
    settings = Reconstruction()
    steps = denoising_steps(settings, STEPS, [settings.guidance_scale] * EDITS)
    guided = sum((step.scales[0] or 0) > 1 for step in steps)
    assert all(step.inject for step in steps)
    once = Inversion().evaluations(highest_stored(settings, STEPS))
    return once, guided, len(steps) - guided


def seconds_of_an_edit(plain: float, injected: float) -> float:
    """Of its forwards, with the defaults: an `EDITS`-th of what a video takes."""
    once, guided, others = calls_of_an_edit()
    branches = EDITS * (2 * guided + others)
    return ((once + guided + others) * plain + branches * injected) / EDITS


def changes(speed: Speed) -> str:
    """What of the settings is not as in a native model."""
    names = ("attention", "compile", "weights")
    return ", ".join(
        f"{name} {getattr(speed, name)}"
        for name in names
        if getattr(speed, name) != getattr(NATIVE, name)
    )

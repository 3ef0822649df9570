"""What one GPU does with a published model at its real size: seconds, MFU, memory, kernels, speed.

    python -m tests.benchmarks.gpu [--model 5b] [--device cuda] [--minutes 10] [--only NAME ...]

Needs torch, diffusers and `pipeline`, and no network: the weights are random. The sections run in
order of what they tell. Each row is written when it is there, and no section begins after
`--minutes`, so a short loan of a card gives the first ones. What fails is a row with its reason,
and the next section runs.

Writes `tests/benchmarks/results/<model>_<hardware>_<date>.md`, and beside it a `.json` with the
shares of the card's peak that were reached: `retake plan --rates` takes it. Untried on a GPU: the
tests run it in tiny sizes on a CPU, where there is no memory to measure.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from tests.benchmarks.gpu import checks, forwards, parts
from tests.benchmarks.gpu.card import GB, Bench, first_line, hardware, real_sizes
from tests.benchmarks.gpu.kinds import Kind, kind_of, rates
from tests.published_models import CLIPS

RESULTS = Path(__file__).parents[1] / "results"
Section = Callable[[Bench], Iterator[list[str]]]
SECTIONS: dict[str, Section] = {
    "versions": checks.versions,
    "forwards": forwards.forwards,
    "compile": forwards.compiled,
    "kernels": parts.kernels,
    "fp8": forwards.fp8,
    "sage": forwards.sage,
    "vae": parts.vae,
    "step_cache": forwards.step_cache,
    "out_of_memory": checks.out_of_memory,
    "small_card": parts.small_card,
    "group_of_one": checks.group_of_one,
    "demo": checks.demo,
    "text_encoder": parts.text_encoder,
}
"""In order of what they tell."""

ANCHORED = ("H100", "H200")
PLAIN_S, INJECTED_S, EDIT_S = 0.75, 1.1, 60.0
"""Of 5b at 49x480x720 on one of these: a forward of 332 TFLOP at 45% of the peak, one of 495 at the
same, and an edit at K = 4, 50 steps and the defaults."""
GAIN = 1.45
"""Compiled blocks with fp8 against native: 112.4 s to 75.3 s on an H100, by the README of
sayakpaul/diffusers-torchao."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser()
    given = options.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        options.error(f"--device {given.device}: torch {torch.__version__} finds no GPU here")
    if bool(given.kind) != bool(given.peak) or given.peak < 0:
        options.error("--kind and --peak go together: a name, and its TFLOP/s, a number above 0")
    memory = torch.cuda.mem_get_info()[1] / GB if device.type == "cuda" else 0.0
    kind = Kind(given.kind, given.peak) if given.kind else kind_of(hardware(device), memory)
    name = re.sub(r"[^a-z0-9]+", "-", hardware(device).lower()).strip("-")
    given.to.mkdir(parents=True, exist_ok=True)
    file = new_file(given.to, f"{given.model}_{name}_{datetime.date.today()}")
    bench = Bench(real_sizes(given.model), device, kind)
    failed = run(bench, given.only, file, given.minutes)
    print(f"written to {file}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return bool(failed)


def new_file(folder: Path, name: str) -> Path:
    """A file for a run's tables: those of an earlier one that day stay."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    files = (folder / f"{one}.md" for one in names)
    return next(file for file in files if not file.exists())


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", choices=list(CLIPS), default="5b")
    made.add_argument("--device", default="cuda")
    made.add_argument("--minutes", type=float, default=60, help="no section begins after so many")
    made.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    made.add_argument("--to", type=Path, default=RESULTS, metavar="FOLDER")
    made.add_argument("--kind", help="the name of the card in `retake plan`, where not known here")
    made.add_argument("--peak", type=float, default=0.0, help="its TFLOP/s in 16 bits, with --kind")
    return made


def run(bench: Bench, names: Sequence[str], file: Path, minutes: float = 60) -> list[str]:
    """Run sections and write each row as it comes; returns the sections in which something failed.

    Args:
        file: of the tables; what `retake plan` can use is in a `.json` beside it.
        minutes: no section begins after so many.
    """
    until = time.monotonic() + 60 * minutes
    written, failed = list[str](), list[str]()
    for number, name in enumerate(names):
        if time.monotonic() > until:
            written.append(f"Left out after {minutes:g} minutes: {', '.join(names[number:])}.\n")
            break
        rows: list[list[str]] = []
        written.append("")
        for row in rows_of(bench, name):
            rows.append(row)
            written[-1] = as_markdown(name, rows)
            file.write_text(page(bench, written), encoding="utf-8")
        failed += [name] * any(cell.startswith("failed: ") for row in rows for cell in row)
        print(written[-1], flush=True)
    file.write_text(page(bench, written), encoding="utf-8")
    if bench.kind and bench.found.shares:
        content = rates(bench.kind, bench.found.shares, f"tests/benchmarks/results/{file.name}")
        file.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    return failed


def rows_of(bench: Bench, name: str) -> Iterator[list[str]]:
    """The rows of a section as they come; what fails in it is the last one."""
    begun = False
    try:
        for row in SECTIONS[name](bench):
            begun = True
            yield row
    except Exception as error:  # the next section may tell something all the same
        if not begun:
            yield ["result"]
        yield [f"failed: {type(error).__name__}: {first_line(error)}"]
    finally:
        bench.free()


def as_markdown(name: str, rows: Sequence[list[str]]) -> str:
    width = len(rows[0])
    lines = [f"| {' | '.join(row + [''] * (width - len(row)))} |" for row in rows]
    lines.insert(1, "|---" * width + "|")
    return f"## {name}\n\n{SECTIONS[name].__doc__}\n\n" + "\n".join(lines) + "\n"


def page(bench: Bench, sections: Sequence[str]) -> str:
    """The file: what was found at a glance, then the sections."""
    clip = "x".join(map(str, bench.sizes.clip))
    head = (
        f"# {bench.sizes.info.family} on {hardware(bench.device)}, {datetime.date.today()}\n\n"
        f"Clips of {clip}, {bench.dtype}; the weights are random. Written by "
        "`python -m tests.benchmarks.gpu`.\n"
    )
    return "\n".join([head, *([glance(bench)] if bench.found.seconds else []), *sections])


def glance(bench: Bench) -> str:
    """Each way's seconds, beside what is published where that is of this model and card."""
    kind, info = bench.kind, bench.sizes.info
    anchored = bool(kind and kind.name in ANCHORED and info.family == "5b")

    def judged(value: float, most: float) -> str:
        target = f" (≤ {most:g}: {'met' if value <= most else '**missed**'})" if anchored else ""
        return f"{value:.3g}{target}"

    lines = [
        f"| | plain forward, s | injected, s | an edit at K = {forwards.EDITS}, "
        f"{forwards.STEPS} steps, the defaults, s | times native |",
        "|---|---|---|---|---|",
    ]
    edit_s = bench.found.edit_s
    for way, (plain, injected) in bench.found.seconds.items():
        gain = edit_s["native"] / edit_s[way]
        wanted = anchored and way == forwards.NAMES["fp8"]
        note = f" (≥ {GAIN}: {'met' if gain >= GAIN else '**missed**'})" if wanted else ""
        lines.append(
            f"| {way} | {judged(plain, PLAIN_S)} | {judged(injected, INJECTED_S)} | "
            f"{judged(edit_s[way], EDIT_S)} | {gain:.2f}x{note} |"
        )
    return "\n".join(lines) + "\n\nAn edit's seconds are those of its forwards, without the VAE.\n"


if __name__ == "__main__":
    sys.exit(main())

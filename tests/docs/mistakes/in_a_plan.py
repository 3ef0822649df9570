"""Mistakes with `retake plan`, with a file of rates, and with what makes the model faster."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from pipeline import Editor
from pipeline.settings import Speed
from tests.docs.mistakes.kinds import changes, commands, jobs
from tests.docs.mistakes.provoke import Mistakes, python, retake


def plans(*options: str) -> Mistakes:
    return {f"`retake plan job.yaml {one}`": lambda one=one: plan(one) for one in options}


def plan(options: str) -> str:
    return retake("plan", "job.yaml", "--sample", "0", *shlex.split(options))


def rates(*lines: str) -> Mistakes:
    """Files of rates, each of one line."""
    return {f"`--rates` of `{one}`": lambda one=one: with_rates(one) for one in lines}


def with_rates(text: str) -> str:
    Path("rates.yaml").write_text(text)
    return plan("--rates rates.yaml")


def without_torchao(do: Callable[[], str]) -> str:
    with patch.dict(sys.modules, {"torchao": None}):
        return do()


PLANNING: Mistakes = {
    **commands("plan", "plan nothing.yaml", "plan clips"),
    **plans(
        "--gpu H1000",
        "--gpu A100",
        "--gpu T4",
        "--gpu H100,A100-80",
        "--gpus 0",
        "--gpus eight",
        "--price cheap",
        "--price H1=2",
        "--price=-2",
        "--limit 0",
        "--sample -1",
        "--only hors",
        "--rates none.yaml",
        "--rates clips",
        "--rates horse.mp4",
        "--gpus 2 --set cluster.reconstruction.groups=9",
        "--gpus 2 --set cluster.reconstruction.gpus=4",
    ),
    "`--rates` of an empty file": lambda: with_rates(""),
    **rates(
        "H100: 0.4",
        "rates: {H100: 0.4}",
        "rates: [{name: H100, mfu: 0.4}]",
        "rates: [{name: H100, plain_mfu: 45}]",
        "rates: [{name: X1, plain_mfu: 0.4}]",
        "rates: [{plain_mfu: 0.4}]",
        "rates: [{name: H100, plain_mfu: 0.4, basis: guessed}]",
        "rates: [",
    ),
}

SPEED: Mistakes = {
    **jobs(
        "speed: fast",
        "speed: {attention: flash3}",
        "speed: {compile: yes please}",
        "speed: {compile: 1}",
        "speed: {weights: int8}",
        "speed: {step_cache: 2}",
        "speed: {step_cache: true}",
        "speed: {step_cache_steps: [0.9, 0.1]}",
        "speed: {cache: 0.1}",
        "attention: cudnn",
    ),
    **changes("weights=fp8"),
    **commands(
        "edit horse.mp4 'a zebra' --compile maybe",
        "edit horse.mp4 'a zebra' --step-cache much",
        "edit horse.mp4 'a zebra' --step-cache-steps 0.5",
        "edit horse.mp4 'a zebra' --step-cache-steps 0.9,0.1",
        "edit horse.mp4 'a zebra' --weights int8",
        "edit horse.mp4 'a zebra' --checkpoint 5b --device cpu --steps 3 --attention flash",
        "edit horse.mp4 'a zebra' --speed fp8",
    ),
    "`retake edit ... --weights fp8` without torchao": lambda: without_torchao(
        lambda: retake("edit", "horse.mp4", "a zebra", "--checkpoint", "5b", "--weights", "fp8")
    ),
    '`Editor.from_pretrained("5b", speed=Speed(weights="fp8"))` without torchao': lambda: (
        without_torchao(
            lambda: python(lambda _: Editor.from_pretrained("5b", speed=Speed(weights="fp8")))
        )
    ),
    '`Editor.from_pretrained("5b", speed="fp8")`': lambda: python(
        lambda _: Editor.from_pretrained("5b", speed="fp8")  # type: ignore[arg-type]
    ),
    '`Speed(attention="fast")`': lambda: python(
        lambda _: Speed(attention="fast")  # type: ignore[arg-type]
    ),
}

"""Counts the bytes that a rank sends in one step, against the formula for Ulysses and ring.

    python -m tests.benchmarks.exchange > tests/benchmarks/exchange.md

Real groups of gloo processes run small models of each family, with the collectives wrapped to count
what leaves a rank; a count that the formula does not give is an error. The second table puts the
sizes of the published checkpoints into the same formula.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives

from pipeline.algorithm.branches import Branch
from pipeline.model.group import TokenGroup
from pipeline.model.parallel.degrees import Degrees
from pipeline.model.parallel.group import split_evenly
from tests.named_prompts import NamedModel
from tests.rank_processes import run_groups
from tests.small_models import FAMILIES, make_transformer

MEASURED = (
    ((0, 1), Degrees(ulysses=2)),
    ((0, 1), Degrees(ring=2)),
    ((0, 1), Degrees(cfg=2)),
    ((0, 1, 2), Degrees(ulysses=3)),
    ((0, 1, 2), Degrees(ring=3)),
    ((0, 1, 2, 3), Degrees(ulysses=2, ring=2)),
    ((0, 1, 2, 3), Degrees(ulysses=2, cfg=2)),
)
ESTIMATED = (
    Degrees(ulysses=2),
    Degrees(ring=2),
    Degrees(cfg=2),
    Degrees(ulysses=2, ring=2),
    Degrees(ulysses=2, cfg=2),
    Degrees(ring=4),
    Degrees(ulysses=6),
)
KINDS = ("ulysses", "ring", "tokens", "halves")
LATENT_CHANNELS = 16
Counts = dict[Degrees, dict[str, dict[str, int]]]
"""Bytes by degrees, family and kind of exchange."""


@dataclass(frozen=True)
class Model:
    """What the formula needs to know of a model and of the clip that it runs on.

    Args:
        latent_frames, rows, columns: of the latents.
        item_bytes: of the dtype that the transformer runs in.
    """

    layers: int
    width: int
    text_tokens: int
    latent_frames: int
    rows: int
    columns: int
    frames_per_patch: int = 1
    item_bytes: int = 2

    @property
    def video_tokens(self) -> int:
        return self.latent_frames // self.frames_per_patch * (self.rows // 2) * (self.columns // 2)

    @property
    def latent_values(self) -> int:
        return LATENT_CHANNELS * self.latent_frames * self.rows * self.columns


PUBLISHED = {
    "2b, 49 frames of 480x720": Model(30, 30 * 64, 226, 13, 60, 90),
    "5b, 49 frames of 480x720": Model(42, 48 * 64, 226, 13, 60, 90),
    "1.5-5b, 81 frames of 768x1360": Model(42, 48 * 64, 226, 22, 96, 170, frames_per_patch=2),
}
SMALL = {
    family: Model(2, 96, 20, 2 * patch, 10, 14, frames_per_patch=patch, item_bytes=4)
    for family, patch in zip(FAMILIES, (1, 1, 2), strict=True)
}


def sent_in_a_step(model: Model, degrees: Degrees) -> dict[str, float]:
    """Bytes that a rank sends for one edit's guided step with a reference of the empty prompt.

    With L the bytes of one rank's tokens in a layer, padding included:
    - Ulysses trades q, k, v and the output, of which 1/u stays: 4 (u - 1) / u L a layer;
    - ring passes on keys and values r - 1 times: 2 (r - 1) L a layer;
    - the rank's slice of the prediction goes to the other ranks that share its tokens;
    - with cfg 2 each half sends its velocity and the reference's to the other, in float32.
    """
    branches = 2 if degrees.cfg == 2 else 3  # each half of a CFG group has the reference beside it
    ranks = degrees.token_ranks
    text, video = (split_evenly(n, ranks)[0] for n in (model.text_tokens, model.video_tokens))
    local = branches * (text + video) * model.width * model.item_bytes
    token_values = 4 * LATENT_CHANNELS * model.frames_per_patch
    slices = branches * video * token_values * model.item_bytes
    return {
        "ulysses": model.layers * 4 * (degrees.ulysses - 1) / degrees.ulysses * local,
        "ring": model.layers * 2 * (degrees.ring - 1) * local,
        "tokens": (ranks - 1) * slices,
        "halves": (degrees.cfg - 1) * branches * model.latent_values * 4,
    }


def main() -> None:
    if sys.argv[1:2] == ["ranks"]:
        folder, some = sys.argv[2], MEASURED[: int(sys.argv[3])]
        run_groups(some, Path(folder), lambda group, d: _measure(group, d, folder), _nothing)
        return
    counts = counted(len(MEASURED))
    print("# What a rank sends in one step\n")
    print(
        "One step is one edit's guided prediction with reference attention (negative, positive "
        "and one reference\nbranch of the empty prompt). Written by "
        f"`python -m tests.benchmarks.exchange` with torch {torch.__version__}.\n"
    )
    print("## Counted, small models on gloo, KB (float32, 20 text tokens, padding included)\n")
    print("\n".join(_table(_counted_rows(counts))))
    print("\nEvery count is the formula's to the byte; this program fails otherwise.\n")
    print("## By the formula, published checkpoints, GB (16-bit)\n")
    print("\n".join(_table(_estimated_rows())))


def counted(groups: int) -> Counts:
    """The bytes that a rank of each of the first groups of `MEASURED` sends."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.exchange", "ranks", folder, str(groups)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        measured = MEASURED[:groups]
        return {d: json.loads((Path(folder) / str(d)).read_text()) for _, d in measured}


def _counted_rows(counts: Counts) -> Iterator[list[str]]:
    yield [
        "model",
        "video tokens",
        "degrees",
        "Ulysses",
        "ring",
        "prediction",
        "halves",
        "/formula",
    ]
    for family, model in SMALL.items():
        for degrees, sent in ((d, counts[d][family]) for _, d in MEASURED):
            formula = sent_in_a_step(model, degrees)
            if any(sent.get(kind, 0) != formula[kind] for kind in KINDS):
                raise SystemExit(f"{family}, {degrees}: sent {sent}, by the formula {formula}")
            ratio = sum(sent.values()) / sum(formula.values())
            numbers = [f"{sent.get(kind, 0) / 1e3:.1f}" for kind in KINDS]
            yield [family, str(model.video_tokens), str(degrees), *numbers, f"{ratio:.3f}"]


def _estimated_rows() -> Iterator[list[str]]:
    yield ["model", "video tokens", "degrees", "Ulysses", "ring", "prediction", "halves", "all"]
    for name, model in PUBLISHED.items():
        for degrees in ESTIMATED:
            formula = sent_in_a_step(model, degrees)
            numbers = [f"{formula[kind] / 1e9:.3f}" for kind in KINDS]
            total = f"{sum(formula.values()) / 1e9:.2f}"
            yield [name, str(model.video_tokens), str(degrees), *numbers, total]


def _table(rows: Iterator[list[str]]) -> Iterator[str]:
    header = next(rows)
    yield f"| {' | '.join(header)} |"
    yield "|---" * 3 + "|--:" * (len(header) - 3) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _measure(group: TokenGroup, degrees: Degrees, folder: str) -> None:
    counts: dict[str, Counter[str]] = {}
    for family, small in SMALL.items():
        transformer = make_transformer(
            family,
            num_attention_heads=6,
            max_text_seq_length=small.text_tokens,
            sample_frames=4 * (small.latent_frames - 1) + 1,
            sample_height=small.rows,
            sample_width=small.columns,
        )
        prompts = {prompt: torch.zeros(small.text_tokens, 32) for prompt in ("", "a", "worse")}
        model = NamedModel(transformer, prompts, group=group)
        x = torch.zeros(small.latent_frames, LATENT_CHANNELS, small.rows, small.columns)
        empty = model.named("")
        branches = [Branch(x, model.named(name), empty) for name in ("worse", "a")]
        with _counting() as counts[family]:
            model.predict(branches, 500, x)
    everyone = group.gather_objects(counts)
    if any(other != counts for other in everyone):
        raise SystemExit(f"the ranks of {degrees} do not send the same: {everyone}")
    if group.rank == 0:
        (Path(folder) / str(degrees)).write_text(json.dumps(counts))


@contextmanager
def _counting() -> Iterator[Counter[str]]:
    """Count the bytes that leave this rank, by the kind of the exchange."""
    from xfuser.core.distributed import get_cfg_group
    from yunchang.globals import PROCESS_GROUP

    sent: Counter[str] = Counter()
    all_to_all, all_gather = collectives.all_to_all_single, dist.all_gather

    def counting_all_to_all(
        x: torch.Tensor,
        output_split_sizes: list[int] | None,
        input_split_sizes: list[int] | None,
        group: dist.ProcessGroup,
        *rest: Any,
    ) -> torch.Tensor:
        ranks, own = dist.get_world_size(group), dist.get_rank(group)
        sizes = input_split_sizes or [x.numel() // ranks] * ranks
        kind = "ulysses" if group is PROCESS_GROUP.ULYSSES_PG else "ring"
        sent[kind] += (sum(sizes) - sizes[own]) * x.element_size()
        return all_to_all(x, output_split_sizes, input_split_sizes, group, *rest)

    def counting_all_gather(
        gathered: list[torch.Tensor], x: torch.Tensor, group: dist.ProcessGroup
    ) -> None:
        kind = "halves" if group is get_cfg_group().device_group else "tokens"
        sent[kind] += (dist.get_world_size(group) - 1) * x.nbytes
        all_gather(gathered, x, group)

    # torch's ring attention exchanges through `permute_tensor`, which is an all-to-all too.
    with (
        patch.object(collectives, "all_to_all_single", counting_all_to_all),
        patch.object(dist, "all_gather", counting_all_gather),
    ):
        yield sent


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()

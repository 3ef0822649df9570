"""What the report knows about each number of a result row: its name, its unit and what it says.

A number that is not listed here (a metric added later, or a column of the manifest) is shown too,
under its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MOST_BARS = 24


@dataclass(frozen=True)
class Metric:
    """A number that edits have.

    Args:
        key: its name in the results' `metrics`, or of the column; of a score with its kind before.
        label: its name on the page.
        unit: of the value; `%` for a fraction that is shown in percent.
        group: the heading that it stands under.
        about: one line on what it says, and which values are good.
    """

    key: str
    label: str
    unit: str
    group: str
    about: str


SCORES = (
    Metric(
        "frames_background_psnr_db",
        "Background kept",
        "dB",
        "Frames",
        "PSNR against the source outside of the edit; 30 dB and more is hard to see.",
    ),
    Metric(
        "frames_background_ssim",
        "Background structure",
        "",
        "Frames",
        "SSIM against the source outside of the edit; 1: the same.",
    ),
    Metric(
        "frames_change",
        "Change",
        "",
        "Frames",
        "Mean difference to the source inside of the edit; near 0 nothing happened.",
    ),
    Metric(
        "frames_changed_fraction",
        "Changed area",
        "%",
        "Frames",
        "Share of all pixels that differ visibly from the source.",
    ),
    Metric(
        "frames_motion_agreement",
        "Motion, scored",
        "",
        "Frames",
        "Does the edit move where its source moves? 1: in the same places, 0: unrelated.",
    ),
    Metric(
        "frames_flicker",
        "Flicker added",
        "luma",
        "Frames",
        "The edit's flicker less its source's; 0 and below: none was added.",
    ),
    Metric(
        "frames_sharpness",
        "Sharpness",
        "×",
        "Frames",
        "Fine detail over that of the source; 1: the same, below: blurred.",
    ),
    Metric(
        "clip_text",
        "CLIP: prompt",
        "cosine",
        "CLIP and DINO",
        "Do the frames show what the prompt says? Higher is nearer, within one CLIP model.",
    ),
    Metric(
        "clip_direction",
        "CLIP: direction",
        "cosine",
        "CLIP and DINO",
        "Do the frames change as the prompts do? 0: unrelated, 1: in the same way.",
    ),
    Metric(
        "clip_frames",
        "CLIP: frames",
        "cosine",
        "CLIP and DINO",
        "Agreement of the frames with each other; 1: all alike.",
    ),
    Metric(
        "dino_source",
        "DINO: source",
        "cosine",
        "CLIP and DINO",
        "Agreement of the frames with the source's; 1: the same structure.",
    ),
    Metric(
        "dino_structure",
        "DINO: structure",
        "",
        "CLIP and DINO",
        "Distance of the layouts of edit and source; 0: the same layout.",
    ),
    Metric(
        "judge_follows",
        "Judge: follows",
        "of 4",
        "Judge",
        "Does the edit do what was asked? 1: not at all, 4: wholly.",
    ),
    Metric(
        "judge_quality",
        "Judge: quality",
        "of 4",
        "Judge",
        "Does it look like a real video? 1: not at all, 4: wholly.",
    ),
    Metric(
        "judge_preserves",
        "Judge: preserves",
        "of 4",
        "Judge",
        "Is all else as it was in the source? 1: not at all, 4: wholly.",
    ),
)
"""The numbers of `Scores`."""
METRICS = (
    *SCORES,
    Metric(
        "motion_agreement",
        "Motion agreement",
        "",
        "Edit",
        "Does the edit move where its source moves? 1: in the same places, 0: unrelated.",
    ),
    Metric(
        "flicker",
        "Flicker",
        "luma",
        "Edit",
        "Jumps of brightness from frame to frame, 0 (steady) to 1. Compare the source's.",
    ),
    Metric(
        "flicker_source",
        "Flicker of the source",
        "luma",
        "Edit",
        "The same for the source clip: an edit far above this has added flicker.",
    ),
    Metric(
        "clipped_fraction",
        "Clipped values",
        "%",
        "Edit",
        "Share of values decoded outside of the visible range; near 0 is good.",
    ),
    Metric(
        "largest_residual",
        "Largest residual",
        "latent",
        "Edit",
        "The reference branch's worst step away from its trajectory; 0 is exact.",
    ),
    Metric(
        "vae_psnr_db",
        "VAE ceiling",
        "dB",
        "Inversion",
        "PSNR of the source through the VAE and back: the most an edit can keep.",
    ),
    Metric(
        "round_trip_db",
        "Round trip",
        "dB",
        "Inversion",
        "What comes back when the inversion is undone; 30 dB and more is faithful.",
    ),
    Metric(
        "noise_level",
        "Noise level",
        "%",
        "Inversion",
        "How high the trajectory goes; only at 100% is its top meant to be true noise.",
    ),
    Metric(
        "noise_mean",
        "Noise mean",
        "latent",
        "Inversion",
        "Mean of the trajectory's top level; 0 for true noise.",
    ),
    Metric(
        "noise_std",
        "Noise deviation",
        "latent",
        "Inversion",
        "Standard deviation of the trajectory's top level; 1 for true noise.",
    ),
    Metric(
        "noise_kurtosis",
        "Noise kurtosis",
        "",
        "Inversion",
        "Excess kurtosis of the trajectory's top level; 0 for true noise.",
    ),
    Metric("gpu_seconds", "GPU time", "s", "Cost", "Seconds of GPU that this edit took."),
    Metric(
        "forwards",
        "Forwards",
        "",
        "Cost",
        "Forwards of the transformer: in the inversion, plain, and with reference attention.",
    ),
)
_KNOWN = {metric.key: metric for metric in METRICS}


def describe(key: str) -> Metric:
    """The metric of that key; one that says only its name if the key is not known."""
    label = key.replace("_", " ")
    return _KNOWN.get(key) or Metric(key, label[:1].upper() + label[1:], "", "Other numbers", "")


def summarise(metric: Metric, values: Sequence[float | None] | np.ndarray) -> dict[str, Any]:
    """A metric with its distribution, as the page's summary holds it.

    The first and the last bin are open: what lies beyond them counts there, so that one stray
    value does not press all others into one bar.
    """
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    summary: dict[str, Any] = {**asdict(metric), "count": len(numbers)}
    if not len(numbers):
        return summary
    low, q01, median, q99, high = np.percentile(numbers, (0, 1, 50, 99, 100))
    near = (q01, q99) if high - low > 3 * (q99 - q01) > 0 else (low, high)
    wanted = int(np.clip(2 * np.sqrt(len(numbers)), 8, MOST_BARS)) if near[1] > near[0] else 1
    edges = np.linspace(*near, wanted + 1)
    counts = np.histogram(np.clip(numbers, *near), edges)[0] if wanted > 1 else [len(numbers)]
    return summary | {
        "low": float(low),
        "median": float(median),
        "high": float(high),
        "edges": [float(f"{edge:.12g}") for edge in edges],
        "bars": [int(count) for count in counts],
    }

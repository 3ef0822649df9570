"""What stands for each measure: known before a model is opened, and without torch.

A score whose fingerprint is another one today is measured again. So it covers the model's files and
how it is asked, and nothing else: a folder that was moved is the same model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.model.folder.fingerprint import fingerprint as of_files
from pipeline.settings import ScoreSettings

VERSIONS = {"frames": 1, "clip": 1, "dino": 1}
"""By kind, raised when a change of ours makes its numbers differ."""
TYPES = {"clip": ("clip",), "dino": ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")}
"""The types of model, as `config.json` has them, that measure a kind."""
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
"""What of a model's folder changes what it says."""


class WrongModel(Exception):
    """A folder that does not hold the model that was asked for; the text says what it holds."""


def fingerprints(settings: ScoreSettings) -> dict[str, str]:
    """The fingerprint of each kind of measure that some settings ask for.

    Raises:
        WrongModel: a model cannot be found.
    """
    found = of_measures(settings)
    if settings.judge:
        from pipeline.quality.judge import fingerprint_of

        found["judge"] = fingerprint_of(settings)
    return found


def of_measures(settings: ScoreSettings) -> dict[str, str]:
    """`fingerprints` of all but the judge, which has its own."""
    found = {"frames": f"frames-{VERSIONS['frames']}"} if settings.frames else {}
    for kind, location in (("clip", settings.clip), ("dino", settings.dino)):
        if location:
            found[kind] = f"{kind}-{VERSIONS[kind]}-{model_fingerprint(location)}"
    return found


def model_fingerprint(location: str) -> str:
    """16 hex digits for a model: of its files, sampled as a checkpoint's are, or of its commit.

    Args:
        location: a folder, or a name on the Hugging Face Hub.

    Raises:
        WrongModel: there is no such folder, or the Hub does not give the name.
    """
    folder = Path(location)
    if folder.is_dir():
        files = sorted({file for pattern in FILES for file in folder.glob(pattern)})
        return of_files(folder, files)
    return hashlib.sha256(hub_commit(location).encode()).hexdigest()[:16]


def hub_commit(name: str) -> str:
    """The commit that a name on the Hub stands for today; without a network, the one in the cache.

    Raises:
        WrongModel: there is none of this name, or it has no `config.json`.
    """
    if name.startswith(("/", ".")):
        raise WrongModel(
            f"{name}: there is no such folder; expected one that transformers opens, or "
            "a name on the Hugging Face Hub"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json")).parent.name
    except Exception as error:  # the Hub's library has many kinds of failure
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WrongModel(f"{name}: not a model that transformers can open: {first}") from error

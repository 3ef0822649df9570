"""Checkpoints of which only the configuration files are there, as published."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.model.checkpoint import Family
from tests.published_models import T5, TRANSFORMERS, VAES
from tests.small_models import scheduler


def write_configuration(folder: Path, family: Family) -> Path:
    """The JSON files of a published checkpoint in a folder, and nothing else."""
    files = {
        "model_index.json": {"_class_name": "CogVideoXPipeline"},
        "transformer/config.json": TRANSFORMERS[family],
        "vae/config.json": VAES[family],
        "scheduler/scheduler_config.json": scheduler(family),
        "text_encoder/config.json": T5,
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"},
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    return folder

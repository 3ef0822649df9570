"""What a wheel holds."""

import tomllib
from pathlib import Path

from setuptools.config.pyprojecttoml import read_configuration
from setuptools.discovery import PEP420PackageFinder

import pipeline

ROOT = Path(__file__).parents[2]


def packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return set(
        PEP420PackageFinder.find(str(ROOT), **project["tool"]["setuptools"]["packages"]["find"])
    )


def test_every_folder_of_the_three_packages_is_in_the_wheel_but_the_training_recipe() -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("pipeline", "cluster", "jobs")
        for path in (ROOT / name).rglob("*.py")
    }
    assert "jobs.demo.training" in folders
    assert folders - packages() == {"jobs.demo.training"}


def test_the_trained_checkpoint_is_in_the_wheel() -> None:
    assert "jobs.demo.checkpoint.transformer" in packages()


def test_the_version_stands_in_one_place() -> None:
    project = read_configuration(ROOT / "pyproject.toml")["project"]
    assert project["version"] == pipeline.__version__


def test_the_prompt_of_the_judge_is_in_the_wheel() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    (pattern,) = data["pipeline.quality.judge"]
    assert [path.name for path in (ROOT / "pipeline/quality/judge").glob(pattern)] == ["prompt.txt"]

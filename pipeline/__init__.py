"""The model work: inversion and reconstruction of videos with CogVideoX. Torch only, no Ray.

`Editor` and `Trajectory` are for one video in a notebook (`pipeline.editor`); the settings say how
to invert, how to make edits, and what a video may take. `Editor` and `Trajectory` are imported when
they are first asked for: the settings alone cost no torch.
"""

from typing import TYPE_CHECKING, Any

from pipeline.records import EditSpec
from pipeline.settings import Inversion, Limits, Reconstruction, VideoSettings

if TYPE_CHECKING:
    from pipeline.editor import Editor
    from pipeline.trajectories.trajectory import Trajectory

__version__ = "0.1.0"
__all__ = [
    "EditSpec",
    "Editor",
    "Inversion",
    "Limits",
    "Reconstruction",
    "Trajectory",
    "VideoSettings",
]


def __getattr__(name: str) -> Any:
    if name == "Editor":
        from pipeline.editor import Editor

        return Editor
    if name == "Trajectory":
        from pipeline.trajectories.trajectory import Trajectory

        return Trajectory
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")

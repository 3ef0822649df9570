"""The model work: inversion and reconstruction of videos with CogVideoX. Torch only, no Ray.

`load`, `Editor` and `Trajectory` are for one video in a notebook (`pipeline.api`); the settings say
how to invert and how to make edits. They are imported when they are first asked for: the settings
alone cost no torch.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from pipeline.settings import Inversion, Reconstruction, VideoSettings

if TYPE_CHECKING:
    from pipeline.editor import Editor, Trajectory, load

__all__ = ["Editor", "Inversion", "Reconstruction", "Trajectory", "VideoSettings", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Editor", "Trajectory", "load"):
        from pipeline import editor

        return getattr(editor, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")

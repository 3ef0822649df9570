"""Which columns of a table hold the video, the edit prompt, the source prompt, and what may stand
beside them: an instruction, a mask.

The manifest's own names (`video`, `prompt`, `edits`, `source_prompt`) go first, then names that say
what they are (`video_path`, `instruction`), then names that may mean it (`path`, `caption`). Two
candidates of the same rank are refused, unless they hold the same values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.errors import ConvertError, nearest
from jobs.manifest.conversion.records import Record


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VIDEO_NAMES = (
    ("video",),
    _names("""video_path video_file video_uri video_url video_name video_file_name video_filename
           video_filepath video_file_path videopath videoname source_video src_video input_video
           video_location"""),
    _names("""path file url uri link file_name filename file_path filepath clip clip_path
           clip_name clip_file clip_url"""),
)
CAPTIONS = _names("caption text txt description video_caption video_description")
INSTRUCTION_NAMES = _names("""instruction instructions edit_instruction editing_instruction
           edit_instructions editing_instructions""")
PROMPT_NAMES = (
    ("prompt", "edits"),
    _names("""edit_prompt target_prompt edited_prompt editing_prompt target_caption edited_caption
           edit_caption target_text edit_text prompts edit"""),
    INSTRUCTION_NAMES,
    CAPTIONS,
)
MASK_NAMES = (
    ("mask",),
    _names("""masks mask_path mask_paths mask_video mask_file mask_file_name mask_uri mask_url
           video_mask video_mask_path mask_video_path edit_mask"""),
)
SOURCE_NAMES = (
    ("source_prompt",),
    _names("""source_caption source_text source_description original_prompt original_caption
           original_text input_prompt input_caption src_prompt src_caption"""),
    CAPTIONS,
)
OWN = {"video", "prompt", "edits", "source_prompt", "mask", "instruction"}


@dataclass(frozen=True)
class ColumnOptions:
    """The columns that the user named; None for each to be guessed."""

    video: str | None = None
    prompts: tuple[str, ...] = ()
    source_prompt: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns that are used.

    Args:
        video: None where the records are of files.
        prompts: one for each edit of a row; `edits` or a list of prompts gives several.
        instruction: may be one of the prompts, too: a table may have no other.
        guessed: whether one of them has a name that is not the manifest's own.
    """

    video: str | None
    prompts: tuple[str, ...]
    source_prompt: str | None
    guessed: bool
    instruction: str | None = None
    mask: str | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        roles = {
            "video": (self.video,) if self.video else (),
            "prompt": self.prompts,
            "source prompt": (self.source_prompt,) if self.source_prompt else (),
        }
        if self.instruction and self.instruction not in self.prompts:
            roles["instruction"] = (self.instruction,)
        if self.mask:
            roles["mask"] = (self.mask,)
        listed = [
            f"{role} from {' and '.join(f'`{name}`' for name in names)}"
            for role, names in roles.items()
            if names
        ]
        return ", ".join(listed).replace(" from `", " from column `", 1)


def choose_columns(
    uri: str, records: Sequence[Record], options: ColumnOptions, *, given_prompts: bool
) -> Columns:
    """Choose the columns of a table.

    Args:
        given_prompts: whether every row gets the prompts of the command line.

    Raises:
        ConvertError: a column is missing, two may be meant, or a named one is not there.
    """
    return _Choice(uri, records, options, given_prompts).choose()


class _Choice:
    """The choice for one table. A column without a value in any row is no candidate."""

    def __init__(
        self, uri: str, records: Sequence[Record], options: ColumnOptions, given_prompts: bool
    ) -> None:
        self.uri, self.records, self.options = uri, records, options
        self.given_prompts = given_prompts
        self.names = list(dict.fromkeys(name for record in records for name in record.values))
        self.of_files = all(record.uri is not None for record in records)

    def choose(self) -> Columns:
        video, options = self._video(), self.options
        prompts = tuple(self._named("--prompt-column", name) for name in options.prompts)
        source = None
        if options.source_prompt is not None:
            source = self._named("--source-prompt-column", options.source_prompt)
        if not prompts:
            prompts = self._prompts({video, source})
        taken = {video, source, *prompts}
        has_edits = self.given_prompts or bool(prompts)
        if source is None:
            ranks = SOURCE_NAMES if has_edits else SOURCE_NAMES[:2]
            source = self._guess("--source-prompt-column", "the source prompt", ranks, taken)
        warnings = list(self._other_prompts(prompts, taken | {source}))
        if not has_edits:
            prompts = (self._caption(taken | {source}),)
            if prompts[0] != "prompt":
                warnings.append(_caption_taken(prompts[0]))
        taken |= {source, *prompts}
        instruction = self._instruction(prompts, taken)
        no_paths = {name for name in self.names if not self._may_name_files(name)}
        mask = self._guess(None, "the mask", MASK_NAMES, taken | {instruction} | no_paths)
        used = [name for name in (video, *prompts, source, instruction, mask) if name is not None]
        guessed = not OWN.issuperset(used) or instruction in prompts
        return Columns(video, prompts, source, guessed, instruction, mask, tuple(warnings))

    def _instruction(self, prompts: tuple[str, ...], taken: set[str | None]) -> str | None:
        """The column of what a person would ask for: the prompt's own where it is such a one."""
        if len(prompts) == 1 and _plain(prompts[0]) in INSTRUCTION_NAMES:
            return prompts[0]
        return self._guess(None, "the instruction", (INSTRUCTION_NAMES,), taken)

    def _prompts(self, taken: set[str | None]) -> tuple[str, ...]:
        """The columns of edit prompts, but for those with a caption; empty if there is none."""
        prompts = tuple(name for name in self._in_rank(PROMPT_NAMES[0]) if name not in taken)
        if not prompts:
            found = self._guess("--prompt-column", "the edit prompt", PROMPT_NAMES[1:3], taken)
            prompts = (found,) if found else ()
        if prompts and self.given_prompts:
            way = f"or add `--prompt-column {prompts[0]}` for both"
            if prompts[0] != "edits":
                way += f", or `--source-prompt-column {prompts[0]}` if it describes the source"
            raise ConvertError(
                f"{self.uri} has edit prompts of its own in the column {prompts[0]!r}, and "
                f"--prompt gives more. Leave out --prompt, {way}"
            )
        return prompts

    def _video(self) -> str | None:
        if self.of_files:
            return None
        if self.options.video is not None:
            return self._named("--video-column", self.options.video)
        found = self._guess("--video-column", "the video", VIDEO_NAMES, set())
        if found is None and "video" in self.names:
            return "video"  # empty; each row is refused with its place
        if found is None:
            raise ConvertError(self._missing("video", "--video-column"))
        return found

    def _may_name_files(self, name: str) -> bool:
        """Whether a column holds texts, or lists of texts; masks may be stored as numbers, too."""
        cells = [record.values.get(name) for record in self.records]
        values = [v for cell in cells for v in (cell if isinstance(cell, list) else [cell])]
        return all(value is None or isinstance(value, str) for value in values)

    def _caption(self, taken: set[str | None]) -> str:
        found = self._guess("--prompt-column", "the edit prompt", (CAPTIONS,), taken)
        if found or "prompt" in self.names:
            return found or "prompt"  # empty; each row is refused with its place
        if self.of_files and not (set(self.names) - taken):
            raise ConvertError(
                f"{self.uri}: there are no prompts; give at least one: "
                '--prompt "a watercolour painting"'
            )
        raise ConvertError(self._missing("prompt", "--prompt-column"))

    def _other_prompts(self, prompts: tuple[str, ...], taken: set[str | None]) -> Iterator[str]:
        """Say that a column passes through which may have been meant for the prompt."""
        if self.options.prompts or "prompt" not in prompts:
            return
        others = [name for name in self._in_rank(PROMPT_NAMES[1]) if name not in taken]
        if others:
            yield (
                f"the edit prompt is from 'prompt', and {others[0]!r} passes through; "
                f"if it is the other way round, give `--prompt-column {others[0]}`"
            )

    def _missing(self, role: str, option: str) -> str:
        hint, listed = "", ", ".join(map(repr, self.names[:20])) or "nothing"
        if any(_looks_like_data(name) for name in self.names):
            hint = ". Its first line looks like a row; a table needs a header, such as video,prompt"
        elif near := nearest(role, self.names, cutoff=0.6):
            hint = f" (is it {near!r}?)"
        way = f"name it with {option} NAME"
        if role == "prompt":
            way += ', or give every video the same: --prompt "a watercolour painting"'
        return (
            f"{self.uri}: there is no column {role!r}{hint}. It has {listed}. "
            f"If one holds the {role}, {way}"
        )

    def _named(self, option: str, name: str) -> str:
        if name in self.names:
            return name
        same = [other for other in self.names if _plain(other) == _plain(name)]
        near = same[0] if same else nearest(name, self.names, cutoff=0.5)
        hint = f"; did you mean {near!r}?" if near else "."
        listed = ", ".join(map(repr, self.names[:20])) or "no columns"
        raise ConvertError(
            f"{option} {name!r}: {self.uri} has no such column{hint} It has {listed}"
        )

    def _guess(
        self,
        option: str | None,
        role: str,
        ranks: Sequence[Sequence[str]],
        taken: set[str | None],
    ) -> str | None:
        for rank in ranks:
            found = [name for name in self._in_rank(rank) if name not in taken]
            found = self._without_copies(found)
            if len(found) > 1:
                listed = " and ".join(map(repr, found))
                way = f"name one: {option} {found[0]}" if option else "rename one, or leave it out"
                raise ConvertError(f"{self.uri}: {listed} may each be {role}; {way}")
            if found:
                return found[0]
        return None

    def _in_rank(self, rank: Sequence[str]) -> list[str]:
        """The columns with a value whose name is one of these, however it is spelt."""
        return [
            name
            for name in self.names
            if _plain(name) in rank
            and any(record.values.get(name) not in (None, "") for record in self.records)
        ]

    def _without_copies(self, names: list[str]) -> list[str]:
        different: list[str] = []
        for name in names:
            if not any(
                all(r.values.get(name) == r.values.get(other) for r in self.records)
                for other in different
            ):
                different.append(name)
        return different


def _caption_taken(name: str) -> str:
    return (
        f"the edit prompt is taken from {name!r}, since no other column has one. If it describes "
        f"the source, give `--source-prompt-column {name}` and --prompt"
    )


def is_video_name(name: str) -> bool:
    """Whether a column of this name may hold the video."""
    return any(_plain(name) in rank for rank in VIDEO_NAMES)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _looks_like_data(name: str) -> bool:
    return "/" in name or "://" in name or name.lower().endswith((".mp4", ".mov", ".webm", ".mkv"))

"""Settings as options of `retake edit`.

An option has the name, the default and the text that the declaration of its setting has. Its value
stays a text here; `settings_from` makes the settings of it, which check it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from jobs.errors import WrongOption
from jobs.jobfile.docstrings import argument_texts
from pipeline.records import EditSpec, VideoSpec
from pipeline.settings import EditingSettings, Inversion, Reconstruction, Speed, VideoSettings

Settings = TypeVar("Settings", VideoSettings, Inversion, Reconstruction, Speed, EditingSettings)

NOT_OF_ONE = ("mask", "candidates", "keep_candidates", "until_accepted")
"""A mask is the edit's own; and nothing scores candidates here, which would choose among them."""
SETTINGS_OF_AN_EDIT: Mapping[type, tuple[str, ...] | None] = {
    EditingSettings: ("checkpoint", "precision", "seed"),
    VideoSpec: ("source_prompt", "start_frame", "num_frames"),
    EditSpec: ("mask",),
    VideoSettings: None,
    Inversion: None,
    Reconstruction: tuple(f.name for f in fields(Reconstruction) if f.name not in NOT_OF_ONE),
    Speed: None,
}
"""The fields that `retake edit` has an option for; None stands for all of a class."""

EditOutput = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="An MP4 file; for several prompts a folder, or a name with {prompt} or {n} in it. By "
        "default {video}-{prompt}.mp4 in the folder that the command runs in.",
    ),
]

ALIASES = {
    "num_inference_steps": "steps",
    "model_path": "checkpoint",
    "output_path": "output",
    "skip_frames_start": "start_frame",
    "max_num_frames": "num_frames",
    "dtype": "precision",
}
"""What diffusers and the public script call an option, and what we do; not in the help."""


def described(kind: type) -> dict[str, str]:
    """What the docstring of a class says of each field, as the help shows it."""
    texts = argument_texts(kind.__doc__ or "")
    return {name: text[:1].upper() + text[1:] for name, text in texts.items()}


def with_settings(
    wanted: Mapping[type, tuple[str, ...] | None],
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Gives a command that takes `**settings` an option for each field of some settings."""

    def with_options(command: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            _option(kind, name)
            for kind, names in wanted.items()
            for name in names or [field.name for field in fields(kind)]
        ]
        added += [_alias(name) for name in ALIASES]

        def called(**options: Any) -> int:
            return command(**without_aliases(options))

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        return called

    return with_options


def _option(kind: Any, name: str) -> inspect.Parameter:
    default = next(field.default for field in fields(kind) if field.name == name)
    text = described(kind)[name].replace("[", "\\[")
    if default not in (None, ""):
        text += f" \\[default: {_shown(default)}]"
    panels = (VideoSettings, Inversion, Reconstruction, Speed)
    option = typer.Option(
        help=text,
        metavar=_metavar(kind, name),
        rich_help_panel=kind.__name__.removesuffix("Settings") if kind in panels else None,
        show_default=False,
    )
    value = bool if _kinds(kind, name) == [bool] else str
    return _parameter(name, Annotated[value | None, option])


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(f"{part:g}" for part in default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def _alias(name: str) -> inspect.Parameter:
    return _parameter(name, Annotated[str | None, typer.Option(hidden=True)])


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=annotation)


def without_aliases(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the values of aliases where we have them.

    Raises:
        WrongOption: an option was given by both of its names.
    """
    options = dict(options)
    for alias, name in ALIASES.items():
        if (value := options.pop(alias, None)) is None:
            continue
        if options.get(name) is not None:
            raise WrongOption(f"{flag(alias)} is another name of {flag(name)}; give one of them")
        options[name] = value
    return options


def settings_from(kind: type[Settings], options: Mapping[str, Any], **known: Any) -> Settings:
    """Settings from the values of their options; a default where there is none.

    Args:
        known: values that no option gives.

    Raises:
        WrongOption: a value that a setting does not take.
    """
    try:
        return kind(**values_from(kind, options), **known)
    except ValueError as error:
        raise WrongOption(with_flags(kind, str(error))) from error


def values_from(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the fields that have options. Raises WrongOption as `value_of`."""
    names = SETTINGS_OF_AN_EDIT[kind] or [field.name for field in fields(kind)]
    given = {name: options.get(name) for name in names}
    return {name: value_of(kind, name, text) for name, text in given.items() if text is not None}


def with_flags(kind: Any, message: str) -> str:
    """A message about fields that names their options."""
    names = "|".join(field.name for field in fields(kind))
    return re.sub(rf"\b({names})\b(?= (is|grows)\b)", lambda m: flag(m.group(1)), message)


def with_option_names(message: str) -> str:
    """A message of the engine, which names keys of a job file, with options in their place."""
    sections = {"video": VideoSettings, "inversion": Inversion, "reconstruction": Reconstruction,
                "speed": Speed}  # fmt: skip
    for section, kind in sections.items():
        names = "|".join(field.name for field in fields(kind))
        message = re.sub(rf"\b{section}\.({names})\b", lambda m: flag(m.group(1)), message)
    return message


def value_of(kind: type, name: str, text: Any) -> Any:
    """The value of a field from the text of its option.

    Raises:
        WrongOption: the text is no value of the field's type.
    """
    kinds = _kinds(kind, name)
    for one in kinds:
        try:
            return _read(one, text)
        except ValueError:
            continue
    raise WrongOption(f"{flag(name)} is {text!r}; expected {_in_words(kinds[0])}")


def _read(kind: Any, text: Any) -> Any:
    """Raises ValueError where a text is no value of a type."""
    if kind is bool and isinstance(text, str):
        return ("false", "true").index(text) == 1
    if get_origin(kind) is not tuple:
        return kind(text)
    parts = re.sub(r"[\[\](),]", " ", text).split()
    return tuple(read(part) for read, part in zip(get_args(kind), parts, strict=True))


def _in_words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"two numbers, such as {'0,0.5' if float in get_args(kind) else '0,20'}"
    return "a whole number" if kind is int else "a number"


def flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def _kinds(kind: type, name: str) -> list[Any]:
    """The types of a field, without bounds and None; text is last, and stands for names too."""
    hint = get_type_hints(kind)[name]
    every = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [str if get_origin(one) is Literal else one for one in every if one is not NoneType]
    return sorted(plain, key=lambda one: one is str)


def _metavar(kind: type, name: str) -> str | None:
    """What the help shows in the place of a value."""
    hint = get_type_hints(kind)[name]
    names = [
        n for one in (hint, *get_args(hint)) if get_origin(one) is Literal for n in get_args(one)
    ]
    words = {bool: "true|false", int: "N", float: "NUMBER", str: None if names else "TEXT"}
    kinds = _kinds(kind, name)
    if kinds == [bool]:
        return None
    if get_origin(kinds[0]) is tuple:
        return "FIRST,LAST"
    return "|".join([*names, *(word for one in kinds if (word := words[one]))])

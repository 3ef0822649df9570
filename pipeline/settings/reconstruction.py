"""How edits are made from a trajectory: the settings of an edit, and of candidates beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge, Gt, Le

from pipeline.records import EditSpec
from pipeline.values import Also, check_fields

Fraction = Annotated[float, Ge(0), Le(1)]
StartName = Literal["noise", "inverted"]
Start = StartName | Annotated[float, Gt(0), Le(1)]
Reference = Annotated[
    Literal["empty", "shared", "source", "script", "none"],
    Also(((None, "empty"), ("null", "empty"))),  # its name before, which YAML reads as no value
]


@dataclass(frozen=True)
class Variation:
    """A candidate: an edit made once more, with something changed. None stands for the edit's own.

    Args:
        start, guidance_scale, guidance_steps, inject_steps, noise: as of `Reconstruction`.
        seed: of its noise; by default one that follows from the edit's own, the candidate's number
            and the round.
        mask: `auto` or `none`. One that starts from `noise` has no automatic mask.
    """

    start: Start | None = None
    guidance_scale: Annotated[float, Ge(0), Le(100)] | None = None
    guidance_steps: tuple[Fraction, Fraction] | None = None
    inject_steps: tuple[Fraction, Fraction] | None = None
    noise: Fraction | None = None
    seed: Annotated[int, Ge(0)] | None = None
    mask: Literal["none", "auto"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def changes(self) -> dict[str, object]:
        """What it changes, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Reconstruction:
    """How to make edits from a trajectory.

    The defaults are those that edit the embedded checkpoint's clips best (the table in
    `tests/benchmarks/edits.md`); a larger model, which was not taught to edit, may like others.

    Args:
        start: where the denoising steps start: a fraction of the levels (0.6 starts at the
            trajectory's level there: place is kept better, and the steps above cost nothing, in the
            inversion either), `inverted` (the trajectory's top, x_T), or `noise` (seeded, as in the
            script).
        noise: the part of seeded noise in the noise of the level that an edit starts from: 0 takes
            the trajectory as it is, 1 keeps nothing of its noise, as SDEdit (Meng et al., 2022).
        guidance_scale: of classifier-free guidance; 1 or less turns it off, and half of the
            forwards.
        negative_prompt: for edits that name none.
        reference: how the reference branch is described: `empty` with the empty prompt (cheapest),
            `shared` with the edit's own prompts, the negative one computed once for all edits,
            `source` with the manifest's source prompt, `script` as `shared` but nothing shared (the
            same numbers, for comparison), `none` for no reference attention.
        inject_steps: the window of the denoising steps with reference attention, as fractions.
        inject_blocks: the transformer blocks first <= i < last with it; all by default.
        guidance_steps: the window of the denoising steps with guidance, as fractions. What an edit
            is to be is decided in the first ones; guidance in the last ones costs time and draws
            the rest of the picture away from its source (Kynkaanniemi et al., "Applying Guidance
            in a Limited Interval", 2024, find it needless at low noise in images, too).
        dynamic_guidance: let guidance grow from 1 to 1 + scale along the steps. The formula is that
            of diffusers' `use_dynamic_cfg`, with the step's number in the place of `num_steps - t`,
            where diffusers takes the training timestep for t. A scale of 1 or less stays as it is.
            It needs `guidance_steps` to reach the last step.
        residual: add at each step what the reference's own step misses of the trajectory
            (DirectInversion, Ju et al., ICLR 2024).
        edits_at_once: K, the edits of a video that are denoised in lockstep and share its
            reference; every candidate counts as one.
        mask: of edits to which the manifest gives none: `none`, or `auto` for the places where what
            the edit predicts in its first steps differs from the source's trajectory (Couairon et
            al., "DiffEdit", 2022). Outside of its mask an edit is the source's trajectory.
        mask_grow: pixels that a given mask is grown by.
        mask_feather: pixels outside of a given mask over which it goes from all to nothing, rounded
            up to an even number.
        composite: put the source's own pixels in the place of an edit's outside of its mask.
        candidates: what each edit is made with beside these settings, in the same lockstep; the
            best by `score.rank_by` becomes the edit.
        keep_candidates: keep the files of the others.
        until_accepted: rounds that an edit gets at most whose candidates the job's `accept` all
            rejects; 1 makes no second round. What has noise of its own is made again, with another
            seed.
    """

    start: Start = 0.6
    noise: Fraction = 0.0
    guidance_scale: Annotated[float, Ge(0), Le(100)] = 2.0
    negative_prompt: str = ""
    reference: Reference = "empty"
    inject_steps: tuple[Fraction, Fraction] = (0.0, 1.0)
    inject_blocks: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] | None = None
    guidance_steps: tuple[Fraction, Fraction] = (0.0, 0.4)
    dynamic_guidance: bool = False
    residual: bool = False
    edits_at_once: Annotated[int, Ge(1), Le(64)] = 4
    mask: Literal["none", "auto"] = "none"
    mask_grow: Annotated[int, Ge(0), Le(512)] = 0
    mask_feather: Annotated[int, Ge(0), Le(512)] = 0
    composite: bool = False
    candidates: tuple[Variation, ...] = ()
    keep_candidates: bool = False
    until_accepted: Annotated[int, Ge(1), Le(100)] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("inject_steps", "inject_blocks", "guidance_steps"):
            window = getattr(self, name)
            if window is not None and window[0] > window[1]:
                raise ValueError(
                    f"{name} is {list(window)}: its first number is above its last; exchange them"
                )
        if self.dynamic_guidance and self.guidance_steps[1] < 1:
            raise ValueError(
                f"dynamic_guidance grows in the last steps, and guidance_steps is "
                f"{list(self.guidance_steps)}; make it [0, 1]"
            )
        if self.mask == "auto":
            self.check_auto_mask()
        if self.candidates or self.until_accepted > 1:
            self._check_candidates()

    def check_auto_mask(self) -> None:
        """Raises ValueError where no mask can be found from an edit's first steps."""
        if self.start == "noise":
            raise ValueError(
                "mask is auto and start is noise: of the source such an edit knows nothing at "
                "first; start from a fraction or from inverted, or give masks"
            )

    def _check_candidates(self) -> None:
        """Refuse a candidate that cannot be made, or that would be another one again."""
        before: dict[Any, int] = {}
        every = (Variation(), *self.candidates) if self.candidates else ()
        for number, one in enumerate(every):
            place = f"candidates: number {number}"
            try:
                made = self.varied(one)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            # Each draws a seed of its own where it has none.
            seed = (number if one.seed is None else f"{one.seed}") if made.draws else None
            if (other := before.setdefault((made, one.mask, seed), number)) != number:
                raise ValueError(
                    f"{place} comes out as number {other}{', the edit itself' * (not other)}; "
                    "change something that makes them differ, such as noise"
                )
        if self.until_accepted > 1 and not self.seeded:
            raise ValueError(
                f"until_accepted is {self.until_accepted}, and no candidate has noise: all come "
                "out the same in each round; give one `noise: 0.5`, or leave until_accepted out"
            )

    def varied(self, variation: Variation) -> Reconstruction:
        """The settings that a candidate is made with, which has no candidates itself.

        One that starts from noise has no automatic mask, but where it asks for one.
        """
        mine = {field.name for field in fields(self)}
        changes = {name: value for name, value in variation.changes().items() if name in mine}
        blind = (variation.start or self.start) == "noise"
        if self.mask == "auto" and variation.mask is None and blind:
            changes["mask"] = "none"
        changes |= {"candidates": (), "until_accepted": 1}
        return replace(self, **cast(Any, changes))

    @property
    def draws(self) -> bool:
        """Whether an edit made with these depends on its seed."""
        return self.start == "noise" or self.noise > 0

    @property
    def seeded(self) -> tuple[int, ...]:
        """The numbers of the candidates that another seed makes anew: those of a later round."""
        own = self.draws if self.candidates else False
        return (0,) * own + tuple(
            number
            for number, one in enumerate(self.candidates, 1)
            if one.seed is None and self.varied(one).draws
        )

    @property
    def tries(self) -> int:
        """How often each edit is made: itself, and its candidates."""
        return 1 + len(self.candidates)

    @property
    def edits_a_unit(self) -> int:
        """The edits of a video that a group is asked for at once, for K with all candidates."""
        return max(1, self.edits_at_once // self.tries)

    def filled(self, edit: EditSpec, seed: int) -> EditSpec:
        """An edit with these settings in the place of what it leaves open.

        Args:
            seed: for an edit that has none of its own.
        """
        scale = edit.guidance_scale
        return replace(
            edit,
            negative_prompt=edit.negative_prompt or self.negative_prompt,
            guidance_scale=self.guidance_scale if scale is None else scale,
            seed=seed if edit.seed is None else edit.seed,
        )

"""Train the embedded checkpoint: `python -m jobs.demo.training --output DIR --seed N`.

Stopped and started again with the same `--output` (or `--work`), it goes on where it was; a work
folder of another seed or another plan is refused, and `--fresh` starts over. `--minutes` scales
every stage; the default is the whole recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from jobs.demo.training.export import Provenance, export
from jobs.demo.training.plan import Plan
from jobs.demo.training.pool import make_pool
from jobs.demo.training.reference import train_reference
from jobs.demo.training.trajectories import make_trajectories
from jobs.demo.training.transformer import train_transformer
from jobs.demo.training.vae import reconstruction_psnr, train_decoder, train_vae


def main() -> None:
    """Parse the command line and train."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    plan = Plan() if arguments.minutes is None else Plan().scaled(arguments.minutes)
    if arguments.compile:
        plan = replace(plan, transformer=replace(plan.transformer, compile=True))
    work = arguments.work or arguments.output.with_name(arguments.output.name + ".work")
    if arguments.fresh and work.exists():
        shutil.rmtree(work)
    if problem := claim(work, plan, arguments.seed):
        raise SystemExit(problem)
    train(arguments.output, work, plan, arguments.seed, arguments.device)


def claim(work: Path, plan: Plan, seed: int) -> str | None:
    """Note in a work folder whose it is; says what is wrong where it is another run's."""
    work.mkdir(parents=True, exist_ok=True)
    note = work / "run.json"
    # `compile` changes how fast the run is, and nothing that is stored.
    plan = replace(plan, transformer=replace(plan.transformer, compile=False))
    mine = json.dumps({"seed": seed, "plan": asdict(plan)}, indent=1)
    if not note.exists():
        note.write_text(mine)
    if (other := note.read_text()) == mine:
        return None
    whose = json.loads(other)["seed"]
    return (
        f"{work} holds a run of {'another plan' if whose == seed else f'seed {whose}'}: give "
        "another --work or --output, or --fresh to delete it"
    )


def train(output: Path, work: Path, plan: Plan, seed: int, device: str = "cpu") -> None:
    """Run the whole recipe, or what is left of it in `work`, and write the folder `output`."""
    work.mkdir(parents=True, exist_ok=True)
    clock = Clock(work / "seconds.txt")
    vae = train_vae(plan.vae, seed, work, clock.say, device)
    pool = make_pool(vae, plan.transformer, seed, work, clock.say)
    denoiser = train_transformer(plan.transformer, pool, seed, work, clock.say, device)
    trajectories = make_trajectories(denoiser, plan.transformer, pool, work, clock.say)
    train_reference(denoiser, plan.transformer, pool, trajectories, seed, work, clock.say)
    train_decoder(vae, plan.vae, seed, work, clock.say)
    run = Provenance(
        seed=seed,
        minutes=clock.seconds() / 60.0,
        machine=f"{machine(device)}, bfloat16",
        vae_psnr_db=reconstruction_psnr(vae, seed),
    )
    export(output, vae, denoiser, plan, run)
    clock.say(f"wrote {output}")


def machine(device: str) -> str:
    """What it was trained on, for the card."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''} ({platform.machine()})"


class Clock:
    """The time that training took, over all the runs that it took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float(path.read_text()) if path.exists() else 0.0
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Seconds so far, those of earlier runs included."""
        return self._before + time.monotonic() - self._started

    def say(self, line: str) -> None:
        """Print a line with the time, and note the time for a run that goes on after this one."""
        self._path.write_text(f"{self.seconds():.0f}")
        print(f"{self.seconds() / 60.0:6.1f} min  {line}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.training", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--work", type=Path, help="where to keep what resuming needs (OUTPUT.work)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help=f"of two free cores (default {Plan.minutes})")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--device", default="cpu", help="`cuda` trains on a GPU")
    parser.add_argument("--fresh", action="store_true", help="delete --work and start over")
    parser.add_argument("--compile", action="store_true", help="a sixth faster; needs a compiler")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Training of the embedded checkpoint, from nothing, on clips drawn on the fly.

    python -m jobs.demo.training --output checkpoint --work work --seed 1

Three models are trained in four stages, each seeded, and each resumable from `--work`:

1. `vae.py`: the video VAE, with noise on its latents from the first step.
2. `transformer.py`: the transformer and the T5 encoder (`text.py`) together, on a pool of encoded
   clips (`pool.py`).
3. `reference.py`: fine-tuning on pairs of clips with one geometry and two looks, where the edited
   clip's attention layers also see the keys and values of the source clip; most sources come from
   real inversions (`trajectories.py`).
4. `vae.py` again: the decoder alone, for longer.

`export.py` then writes a plain diffusers folder with its model card. `plan.py` holds every size,
number of steps and learning rate.
"""

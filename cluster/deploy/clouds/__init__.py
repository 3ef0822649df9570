"""Targets that rent machines: Ray's cluster launcher on AWS and Google Cloud, and SkyPilot.

`machines.py` says which machine has which GPUs, `setup.py` what is installed on each, `nodes.py`
waits there until all of them are in Ray's cluster.
"""

"""Tasks read by SkyPilot's own parser, in a process of its own: `parsing.py TASK...`.

SkyPilot is in a folder that only this process looks into (tests/skypilot.txt says why).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml


def main(files: list[str]) -> None:
    import jsonschema
    import sky
    from sky.jobs import recovery_strategy  # noqa: F401  registers the strategies
    from sky.utils import registry, schemas

    for file in files:
        config = yaml.safe_load(Path(file).read_text())
        jsonschema.validate(config, schemas.get_task_schema())
        jsonschema.validate(config["resources"], schemas.get_resources_schema())
        task = sky.Task.from_yaml_config(config, secrets_overrides=[("RAY_AUTH_TOKEN", "x")])
        (resources,) = task.resources
        recovery = resources.job_recovery
        registry.JOBS_RECOVERY_STRATEGY_REGISTRY.from_str(recovery["strategy"])
        print(
            "READ"
            + json.dumps(
                {
                    "name": task.name,
                    "nodes": task.num_nodes,
                    "accelerators": resources.accelerators,
                    "cpus": resources.cpus,
                    "memory": resources.memory,
                    "spot": resources.use_spot,
                    "strategy": recovery["strategy"],
                    "restarts": recovery["max_restarts_on_errors"],
                    "infra": resources.infra.to_str(),
                    "workdir": task.workdir,
                    "secrets": sorted(task.secrets),
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1:])

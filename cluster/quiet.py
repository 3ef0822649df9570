"""Keeps Ray's own messages from drowning the job's; a user's own setting of any of these stands.

Importing this module must come before `import ray`.
"""

import os

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Actors of the graph wait for their rank processes, so more of them than cores is as it should be.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")

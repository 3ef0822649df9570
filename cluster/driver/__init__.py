"""The driver of a job: what it feeds to Ray Data, and what the stages tell it meanwhile."""

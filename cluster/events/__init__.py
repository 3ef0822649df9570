"""The event log of a run: one line of JSON for each thing that happens, in `<output>/logs/`."""

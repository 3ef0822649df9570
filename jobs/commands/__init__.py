"""The commands by what they are for. `jobs.cli` puts them together."""

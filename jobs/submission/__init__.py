"""A job made ready to be sent to a cluster that does not see this machine's files."""

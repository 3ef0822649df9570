"""Whether every node of a cluster can work for a job, found out before the first row."""

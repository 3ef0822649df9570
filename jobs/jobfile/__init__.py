"""The job file: reading it, where its paths lead, what is wrong with it, and writing a new one."""

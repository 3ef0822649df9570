"""Sends jobs to a Ray cluster from elsewhere, and looks after them there."""

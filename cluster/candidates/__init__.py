"""Candidates of edits: how ranks name them, how one row names them all, and which is the best."""

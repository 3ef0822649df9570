"""What is known of a run while it goes on: for its display, and for `status.json`, which others
read from any machine."""

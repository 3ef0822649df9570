"""What a job is going to take, counted before anything starts; needs neither torch nor Ray."""

"""What one GPU does with a published model at its real size, with random weights."""

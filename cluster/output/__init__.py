"""What a run keeps in its output folder beside what it makes."""

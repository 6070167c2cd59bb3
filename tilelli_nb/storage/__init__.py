"""What is kept: run records, checkpoints, the Hub."""

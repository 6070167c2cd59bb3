"""What no chapter teaches: other programs that ours can talk to."""

"""What makes a network a trained one: optimizer, loop, machines, and what it costs."""

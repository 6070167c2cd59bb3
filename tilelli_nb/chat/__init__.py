"""Questions and short answers: the template, the facts, and pairs to learn from."""

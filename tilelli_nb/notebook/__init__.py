"""What the pages of the book use: source in a cell, checks, figures, widgets."""

"""What the pages of the book use: source in a cell, checks, figures, widgets.

Where PyTorch is in use, who imports it lets it have the cores that are free: beside
other programs, a thread too many makes a page several times slower.
"""

import sys

from ..training.cpu_tuning import use_free_cores

if "torch" in sys.modules:
    use_free_cores()

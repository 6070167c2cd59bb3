"""What the pages of the book use: source in a cell, checks, figures, widgets.

Who imports it lets PyTorch have the cores that are free: beside other programs, a
thread too many makes a page several times slower.
"""

from ..training.cpu_tuning import use_free_cores

use_free_cores()

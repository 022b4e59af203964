"""Shared settings: one thread, and hypothesis without deadlines.

The tensors are small, and threads that wait for each other crawl on a busy machine.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("auricle", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("auricle")

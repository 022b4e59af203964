"""Shared settings: one thread (the tensors are small, and threads that wait for each other crawl on a busy machine), and
hypothesis without deadlines."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("auricle", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("auricle")

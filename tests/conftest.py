"""Shared settings: two threads at most, and hypothesis without deadlines (machines are shared and noisy)."""

import torch
from hypothesis import settings

torch.set_num_threads(min(2, torch.get_num_threads()))
settings.register_profile("auricle", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("auricle")

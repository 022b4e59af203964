"""Parts of networks: attention, positions, masks, losses. They know nothing of whole models."""

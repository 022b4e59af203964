"""Recordings as clips with labels, and clips as batches of waveforms."""

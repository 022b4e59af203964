"""Probes: small models trained on frozen embeddings."""

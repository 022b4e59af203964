"""Files to embeddings: `extract` computes them, in resumable shards or in memory; `store` is how they lie on disk."""

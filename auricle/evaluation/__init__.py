"""How good an encoder is: tasks, probes, scores with intervals, and results as files."""

"""Training an encoder, or part of it, with a head on labels; and using what came of it."""

"""A page to try a model on: what it answers to captions, pictures and classes that somebody thinks of."""

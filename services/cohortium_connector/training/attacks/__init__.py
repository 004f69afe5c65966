"""Attacks on our own models: who was in the training, what an update shows, and how much a promise is worth."""

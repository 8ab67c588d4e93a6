"""Losses become trained weights, and all that a run keeps on disk."""

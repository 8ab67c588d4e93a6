"""Reads and writes the authors' checkpoints."""

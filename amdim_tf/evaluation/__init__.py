"""Evaluation: numbers and pictures that say how good features are."""

"""Measures how fast each stage runs, and how near to the machine's limit."""

"""The authors' checkpoints, in and out."""

"""Images become one vector, f1, and maps of features by scale."""

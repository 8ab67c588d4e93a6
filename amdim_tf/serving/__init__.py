"""Weights become what others load: SavedModels, Keras models, files of features."""

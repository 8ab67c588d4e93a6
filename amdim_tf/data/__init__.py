"""A name becomes uint8 images, and these batches of views."""

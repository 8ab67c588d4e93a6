"""A name becomes uint8 images, and images become batches of views."""

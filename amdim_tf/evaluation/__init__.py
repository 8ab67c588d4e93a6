"""Features become numbers and pictures of what they are worth."""

"""A static site that classifies images in the browser."""

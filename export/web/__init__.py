"""A static page that classifies pictures in the browser."""

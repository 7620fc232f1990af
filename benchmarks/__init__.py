"""Measurements of keras-cait and its baselines, and the tables made of them."""

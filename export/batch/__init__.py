"""Batch prediction: millions of images through a model, on Ray Data."""

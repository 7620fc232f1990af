"""Exports a trained CaiT to TensorFlow Serving, phones and browsers."""

"""Configuration and a client for TensorFlow Serving."""

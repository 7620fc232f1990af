"""Measurements of keras-cait and its baselines, and the tables made of them."""

import os

# Before TensorFlow is imported, here and in the processes of the baselines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

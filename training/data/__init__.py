"""Datasets, the input pipeline and augmentation."""

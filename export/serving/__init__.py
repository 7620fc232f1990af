"""What stock TF Serving needs around a SavedModel, and a client for it."""

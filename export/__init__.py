"""From a Keras CaiT to SavedModel and LiteRT: a program run from a checkout."""

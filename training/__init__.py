"""Training, evaluation and reports of CaiT: programs run from a checkout."""

"""The models, trainings and tables of the studies."""

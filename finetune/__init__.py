"""Training jobs, one folder a method: they call `models` to train and `clients` to ask."""

"""Training Robometer: the embedded model from simulated rollouts, and published weights on one's own data."""

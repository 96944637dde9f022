"""Context-smoothed pre-training: one policy for every degree of trust in what it is told."""

"""What the reinforcement-learning methods share."""

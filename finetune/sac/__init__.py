"""Online reinforcement learning of a simulated task from a served reward: soft actor-critic of stable-baselines3."""

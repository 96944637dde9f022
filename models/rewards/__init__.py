"""Reward models: the contract they share, which frames they are shown, and how good their answers are."""

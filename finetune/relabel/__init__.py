"""Label whole datasets with a reward model: a Ray Data job that can be killed at any time and goes on where it was."""

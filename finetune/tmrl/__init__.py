"""TMRL: a high-level agent chooses the noise, the context level and the context noise of a frozen policy."""

"""Environments that the methods are shown on; each is a `gymnasium.Env` whose `info` carries `success`."""

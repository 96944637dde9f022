"""The robot's runtime: a control loop that never waits on the network and never moves on stale or bad data."""

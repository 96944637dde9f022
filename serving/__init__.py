"""Ray Serve deployments: everything that runs on the cluster."""

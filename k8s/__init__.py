"""Manifests for Kubernetes, generated from the same configuration that a laptop runs."""

"""Adapters of policies: low-rank finetuning of a flow VLA by (weighted) behaviour cloning, presets, merging."""

"""Policies behind one contract (`models.policies.contract`); adding one is one file and a line in a configuration."""

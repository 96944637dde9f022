"""Policies behind one contract (`models.policies.contract`); a new one is one file here and a line in a configuration."""

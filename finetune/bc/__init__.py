"""Behaviour cloning: scripted demonstrations, training of the embedded VLA, evaluation and its model card."""

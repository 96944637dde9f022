"""Robometer: a vision-language model that reads progress, success and preference off robot clips (arXiv 2603.02115)."""

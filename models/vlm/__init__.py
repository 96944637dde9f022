"""Vision-language models: a checkpoint folder, what it is asked, and how it answers, in plain PyTorch."""

ADAPTER_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
"""What an adapter may be called, a regular expression."""

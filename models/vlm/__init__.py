"""Vision-language models: a checkpoint folder, what it is asked, and how it answers, in plain PyTorch."""

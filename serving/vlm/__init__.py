"""Vision-language models, served: one contract of engines, three that keep it, and what speaks to callers."""

"""Models, processors, losses and metrics in pure PyTorch: no Ray, no HTTP, no files fetched."""

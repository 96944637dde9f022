"""HAMSTER: a vision-language model draws the path that the gripper takes through the image (arXiv 2502.05485)."""

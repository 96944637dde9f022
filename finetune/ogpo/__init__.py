"""OGPO: off-policy improvement of a generative policy through the likelihood of its denoising chains."""

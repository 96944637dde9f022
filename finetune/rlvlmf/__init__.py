"""RL-VLM-F (arXiv 2402.03681): a reward learned from a served labeller's preferences, and a policy from that reward."""

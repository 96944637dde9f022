"""Which of two observations is nearer to a goal: the contract of a labeller, how it is asked, and how good it is."""

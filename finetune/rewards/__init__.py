"""What the reward models' recipes share: rollouts of mixed quality, and how well a model judges them."""

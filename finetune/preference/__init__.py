"""How good a preference labeller is, against pairs whose truth is known; and who can be asked for labels."""

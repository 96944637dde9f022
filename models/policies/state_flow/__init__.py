"""A small flow or diffusion policy on states, for simulators and toys."""

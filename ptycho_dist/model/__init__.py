"""The network, the forward model around it, and the scaled Poisson loss."""

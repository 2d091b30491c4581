"""A run, from configuration to bundle."""

"""Comparison with a reference, figures and pages: arrays in, numbers and files out."""

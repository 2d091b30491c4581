"""Compare a reconstruction with a reference, and draw it: arrays in, numbers and figures out."""

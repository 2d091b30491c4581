#!/usr/bin/env python
"""Compare with a reference: python launch/evaluate.py --reconstruction DIR/reconstruction.npz
--reference scan.npz --out DIR"""

from ptycho_dist.commands.evaluate import main

if __name__ == "__main__":
    main()

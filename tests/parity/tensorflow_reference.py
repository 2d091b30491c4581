"""Run by .venv-tensorflow: what TensorFlow computes from the arrays of an NPZ file.   python
tensorflow_reference.py in.npz out.npz"""

import sys

import numpy as np
import tensorflow as tf

with np.load(sys.argv[1]) as arrays:
    results = {}
    for name in ("x_norm_c1", "x_norm_c4"):
        x = tf.constant(arrays[name])  # NHWC
        results[f"scale_{name}"] = tf.sqrt(
            arrays["nphotons"].astype(np.float32) / tf.reduce_mean(tf.reduce_sum(x**2, axis=(1, 2)))
        ).numpy()
        x = tf.cast(x, tf.float64)
        results[f"scale64_{name}"] = tf.sqrt(
            arrays["nphotons"] / tf.reduce_mean(tf.reduce_sum(x**2, axis=(1, 2)))
        ).numpy()
    results["nll"] = tf.nn.log_poisson_loss(
        targets=arrays["counts"], log_input=np.log(arrays["rate"]), compute_full_loss=False
    ).numpy()
    np.savez(sys.argv[2], **results)

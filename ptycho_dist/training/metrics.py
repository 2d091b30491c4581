"""The columns of `metrics.csv`, and how often a single step gets a row."""

STEPS_BETWEEN_ROWS = 50

STEP_SPLIT = ("load_ms", "compute_ms", "communicate_ms", "wait_ms")
"""Where a step's time goes; see `step_clock.step_split`."""


def metric_columns(loss_metric: str) -> tuple[str, ...]:
    """Return the columns of a run, of whose loss `loss_metric` is the `Loss.metric`."""
    return (
        "epoch",
        "step",
        "learning_rate",
        f"step_{loss_metric}",
        f"train_{loss_metric}",
        "val_deviance_per_pixel",
        "val_nll",
        "gain",
        *STEP_SPLIT,
    )

"""Commands that the pages show, and those that tests/docs/ does not run."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.blocks import Command, blocks, commands, inline_commands, pages

EXEMPT_COMMANDS = {
    "bash docs/build.sh": "tests/docs/test_site.py builds the site",
    "bash tests/run.sh": "is how this test is run",
    "bash tests/run.sh --all": "is how this test is run",
    "bash tests/run.sh tests/launch/test_faults.py": "is how this test is run",
    "pip install .": "tests/package/ installs the package into new environments",
    "pip install ptycho_dist[mlflow]": "tests/package/ installs the package into new environments",
    "pip install "
    "ptycho_dist[tensorboard]": "tests/package/ installs the package into new environments",
    "python -m build": "tests/package/ builds the distributions",
    "python -m torch.utils.collect_env": "PyTorch's own",
    "ruff check && ruff format --check && mypy && "
    "lint-imports": "tests/lint.sh and tests/test_layers.py",
    "salloc ...": "stands for the cluster's own way to give nodes",
    "source .venv/bin/activate": "Python's own",
    "srun --ntasks-per-node": "names an option, not a command",
    "torchrun --max-restarts": "names an option, not a command",
    "torchrun --max-restarts=N": "names an option, not a command",
    "torchrun --nproc_per_node=2 train_ddp.py": "tests/docs/test_library_examples.py",
    "torchrun --nproc_per_node=2 train_lightning.py": "tests/docs/test_library_examples.py",
}
"""Commands that are not run here, and why."""

ON_A_CLUSTER = ("sbatch", "srun", "salloc")
"""Commands that tests/slurm/test_documented_commands.py runs."""


def is_exempt(command: Command) -> bool:
    return " ".join(command.words) in EXEMPT_COMMANDS


def is_of_a_cluster(command: Command) -> bool:
    return command.words[0] in ON_A_CLUSTER or command.words == ("bash", "slurm/infer.sbatch")


def all_commands() -> Iterator[Command]:
    for page in pages():
        yield from inline_commands(page)
        for block in blocks(page):
            if block.language == "bash":
                yield from commands(block)

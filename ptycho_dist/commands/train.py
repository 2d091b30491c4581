"""`ptycho-train`: train a network on 1 to N processes, or check what a run would find."""

from ptycho_dist.command_line import command
from ptycho_dist.config import make_parser, read_config


@command
def main() -> None:
    parser = make_parser(
        "Train a ptychography network on one or several scans, on 1 to N processes."
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="show as a table what would make the run fail, and train nothing",
    )
    arguments = parser.parse_args()
    config = read_config(arguments)
    # Imported only now, so that --help and mistakes in the command do not wait for PyTorch.
    if arguments.check:
        from ptycho_dist.preflight.check import check

        check(config)
    else:
        from ptycho_dist.training.train import train

        train(config)


if __name__ == "__main__":
    main()

"""`ptycho-inspect`: look at scans before training."""

from pathlib import Path

from ptycho_dist.command_line import command
from ptycho_dist.config import make_parser, read_config


@command
def main() -> None:
    parser = make_parser(
        "Show what scan files hold, what training would take from them with the same options, and "
        "what looks wrong."
    )
    parser.add_argument("scans", type=Path, nargs="+", metavar="SCAN", help="scan file")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="directory of the pictures NAME.inspect.png; made if missing",
    )
    parser.add_argument(
        "--convert",
        type=Path,
        metavar="FILE",
        help="write the scan as .npz, or .h5, too; an existing file is refused",
    )
    arguments = parser.parse_args()
    config = read_config(arguments)
    # Imported only now, so that --help and mistakes in the command do not wait for PyTorch.
    from ptycho_dist.preflight.inspect_scans import inspect

    inspect(config, arguments.scans, arguments.out, arguments.convert)


if __name__ == "__main__":
    main()

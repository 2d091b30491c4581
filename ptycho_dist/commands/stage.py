"""`ptycho-stage`: copy scans to the disk of this node, once and checked."""

import socket

from ptycho_dist.command_line import command
from ptycho_dist.config import (
    DataConfig,
    Directory,
    File,
    Hdf5Config,
    add_scan_keys,
    given_scan_keys,
    make_parser,
)


@command
def main() -> None:
    parser = make_parser(
        "Copy scan files to a directory on this node's disk, unless the same content lies there "
        "already.",
        config=False,
    )
    parser.add_argument("scans", type=File, nargs="+", metavar="SCAN", help="scan file")
    parser.add_argument(
        "--to",
        type=Directory,
        required=True,
        metavar="DIR",
        help="directory to copy to; made if missing",
    )
    parser.add_argument(
        "--repack",
        action="store_true",
        help="write DIR/NAME.npz instead, whose patterns are read in place, one by one",
    )
    parser.add_argument(
        "--measurement",
        choices=["amplitude", "counts"],
        help="to repack a file that does not say what it holds",
    )
    add_scan_keys(parser, "read")
    arguments = parser.parse_args()
    given = given_scan_keys(parser, arguments, "read")
    options = DataConfig(
        measurement=arguments.measurement, **{**given, "hdf5": Hdf5Config(**given.get("hdf5", {}))}
    )
    # Only now: --help, and a mistake in the command, don't wait for PyTorch.
    from ptycho_dist.data.staging import stage_scans

    for copy in stage_scans(
        arguments.scans, arguments.to, repack=options if arguments.repack else None
    ):
        print(f"{socket.gethostname()}: {copy}")


if __name__ == "__main__":
    main()

"""`ptycho-stage`: copy scans to the disk of this node, once and checked."""

import socket
from pathlib import Path

from ptycho_dist.command_line import command
from ptycho_dist.config import DataConfig, add_scan_keys, given_scan_keys, make_parser


@command
def main() -> None:
    parser = make_parser(
        "Copy scan files to a directory on this node's disk, unless the same content is there "
        "already.",
        config=False,
    )
    add = parser.add_argument
    add("scans", type=Path, nargs="+", metavar="SCAN", help="scan file")
    add("--to", type=Path, required=True, metavar="DIR", help="directory to copy to")
    add(
        "--repack",
        action="store_true",
        help="write DIR/NAME.npz instead, whose patterns are read in place, one by one; the "
        "--data.KEY apply to it",
    )
    add_scan_keys(parser)
    arguments = parser.parse_args()
    options = DataConfig.from_mapping(given_scan_keys(arguments))
    # Imported only now, so that --help and mistakes in the command do not wait for PyTorch.
    from ptycho_dist.data.staging import stage_scans

    repack = options if arguments.repack else None
    for copy in stage_scans(arguments.scans, arguments.to, repack=repack):
        print(f"{socket.gethostname()}: {copy}")


if __name__ == "__main__":
    main()

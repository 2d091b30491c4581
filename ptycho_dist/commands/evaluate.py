"""`ptycho-evaluate`: compare a reconstruction with a reference."""

from pathlib import Path

from ptycho_dist.command_line import command
from ptycho_dist.config import DataConfig, add_scan_keys, given_scan_keys, make_parser


@command
def main() -> None:
    parser = make_parser("Compare a reconstruction with the object in a scan file.", config=False)
    add = parser.add_argument
    add(
        "--reconstruction",
        type=Path,
        required=True,
        metavar="FILE",
        help="reconstruction.npz, as ptycho-infer writes it",
    )
    add(
        "--reference",
        type=Path,
        required=True,
        metavar="SCAN",
        help="scan file with an object, for instance a simulation's ground truth",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="directory to write to")
    add_scan_keys(parser)
    arguments = parser.parse_args()
    options = DataConfig.from_mapping(given_scan_keys(arguments))
    # Imported only now, so that --help and mistakes in the command do not wait for PyTorch.
    from ptycho_dist.inference.evaluate import evaluate

    evaluate(arguments.reconstruction, arguments.reference, arguments.out, options=options)


if __name__ == "__main__":
    main()

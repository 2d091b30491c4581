"""`ptycho-evaluate`: compare a reconstruction with a reference."""

from ptycho_dist.command_line import command
from ptycho_dist.config import Directory, File, make_parser


@command
def main() -> None:
    parser = make_parser("Compare a reconstruction with the object in a scan file.", config=False)
    parser.add_argument(
        "--reconstruction",
        type=File,
        required=True,
        help="reconstruction.npz, as ptycho-infer writes it",
    )
    parser.add_argument(
        "--reference",
        type=File,
        required=True,
        help="scan file with an object: a simulation's truth, say",
    )
    parser.add_argument(
        "--out", type=Directory, required=True, help="directory to write to; made if missing"
    )
    arguments = parser.parse_args()
    # Only now: --help, and a mistake in the command, don't wait for PyTorch.
    from ptycho_dist.inference.evaluate import evaluate

    evaluate(arguments.reconstruction, arguments.reference, arguments.out)


if __name__ == "__main__":
    main()

"""`ptycho-infer`: reconstruct a scan with a trained network."""

from pathlib import Path

from ptycho_dist.command_line import command
from ptycho_dist.config import add_scan_keys, given_scan_keys, make_parser


@command
def main() -> None:
    parser = make_parser("Reconstruct a scan with a trained network, in one process.", config=False)
    add = parser.add_argument
    add("scan", type=Path, metavar="SCAN", help="scan file")
    add(
        "--bundle",
        type=Path,
        required=True,
        metavar="FILE",
        help="bundle.zip of a training run; its configuration holds where no --data.KEY is given",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="directory to write to")
    add(
        "--normalization",
        choices=["bundle", "scan"],
        default="bundle",
        help="RMS factor by which amplitudes are scaled: the bundle's, or the scan's own",
    )
    add(
        "--probe",
        choices=["bundle", "scan"],
        help="the bundle's probe, or the scan's own; null: the bundle's where training refined it",
    )
    add(
        "--refine",
        type=int,
        default=0,
        metavar="K",
        help="maximum-likelihood updates of the object, each a pass over the scan",
    )
    add("--refine_probe", action="store_true", help="update the probe in them too")
    add(
        "--product",
        action="store_true",
        help="write DIR/product.h5 too, a ptychodus product; needs the scan's geometry",
    )
    add_scan_keys(parser)
    arguments = parser.parse_args()
    read = given_scan_keys(arguments)
    # Imported only now, so that --help and mistakes in the command do not wait for PyTorch.
    from ptycho_dist.inference.infer import infer

    infer(
        arguments.bundle,
        arguments.scan,
        arguments.out,
        normalization=arguments.normalization,
        probe=arguments.probe,
        read=read,
        refine_iterations=arguments.refine,
        refine_probe=arguments.refine_probe,
        product=arguments.product,
    )


if __name__ == "__main__":
    main()

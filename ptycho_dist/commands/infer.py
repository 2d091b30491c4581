"""`ptycho-infer`: reconstruct a scan with a trained network."""

from ptycho_dist.command_line import command
from ptycho_dist.config import Directory, File, add_scan_keys, given_scan_keys, make_parser


@command
def main() -> None:
    parser = make_parser("Reconstruct a scan with a trained network, in one process.", config=False)
    parser.add_argument("--bundle", type=File, required=True, help="bundle.zip of a training run")
    parser.add_argument("--data", type=File, required=True, help="scan file")
    parser.add_argument(
        "--out", type=Directory, required=True, help="directory to write to; made if missing"
    )
    add_scan_keys(parser, "read")
    parser.add_argument(
        "--measurement",
        choices=["amplitude", "counts"],
        help="what the scan's diffraction array holds, where neither its metadata nor the "
        "training's data.measurement says it",
    )
    parser.add_argument(
        "--normalization",
        choices=["bundle", "scan"],
        default="bundle",
        help="in whose light amplitudes are told: by the stored RMS factor, or the scan's own",
    )
    parser.add_argument(
        "--probe",
        choices=["bundle", "scan"],
        help="the bundle's probe, or the scan's own; null: the bundle's where training refined it",
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="K",
        help="maximum-likelihood updates of the object, each a pass over the scan",
    )
    parser.add_argument("--refine_probe", action="store_true", help="update the probe in them too")
    parser.add_argument(
        "--product",
        action="store_true",
        help="write DIR/product.h5 too, a ptychodus product; needs the scan's geometry",
    )
    arguments = parser.parse_args()
    chosen = {
        "normalization": arguments.normalization,
        "probe": arguments.probe,
        "measurement": arguments.measurement,
    }
    chosen |= {
        "read": given_scan_keys(parser, arguments, "read"),
        "refine_iterations": arguments.refine,
        "refine_probe": arguments.refine_probe,
        "product": arguments.product,
    }
    # Only now: --help, and a mistake in the command, don't wait for PyTorch.
    from ptycho_dist.inference.infer import infer

    infer(arguments.bundle, arguments.data, arguments.out, **chosen)


if __name__ == "__main__":
    main()

"""Draw images from the checkpoint of a trained model; no data or configuration is needed."""

import inspect
from typing import Any

import command

from digitlab import plugins
from digitlab.config import schema
from digitlab.runs.files import atomic_write, check_links
from digitlab.runs.results import best_checkpoint


@command.exit_on_error
def main() -> None:
    """Write the images as a grid (.png) or as one array (--out FILE.npz)."""
    parser = command.make_parser(__doc__)
    parser.add_argument(
        "run",
        type=command.parse_path,
        metavar="RUN",
        help="directory of a completed run of a model that generates images",
    )
    parser.add_argument("--n", type=int, default=20, help="number of images (default 20)")
    parser.add_argument(
        "--prior",
        choices=schema.choices("prior"),
        help="distribution of z (default: the prior of the run)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of z (default 0)")
    parser.add_argument(
        "--out",
        type=command.parse_path,
        help="a .png, or an .npz with images uint8 (n, H, W) or (n, H, W, 3) (default: in RUN)",
    )
    command.add_plugins(parser)
    options = parser.parse_args()
    if not 1 <= options.n <= 100_000 or options.seed < 0:
        parser.error("--n must be from 1 to 100000 and --seed >= 0")
    if options.out is not None and options.out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out {options.out}: must end in .png or .npz")
    check_links(options.run)
    path = best_checkpoint(options.run)
    plugins.load(options.plugin)
    # These imports take seconds, which --help and errors in the command should not cost.
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.utils import make_grid

    from digitlab.data.images import to_array
    from digitlab.models import checkpoints

    # Its method `generate` takes n, the seed and, if there is a choice, the prior; it returns
    # images (n, C, H, W) in [0, 1].
    model: Any = checkpoints.load_model(path)
    if not hasattr(model, "generate"):
        raise ValueError(
            f"{options.run}: its model generates no images; name a run of an autoencoder or a vae"
        )
    if options.prior and "prior" not in inspect.signature(model.generate).parameters:
        raise ValueError(f"--prior {options.prior}: the model of {options.run} has no choice")
    prior = options.prior or getattr(model, "prior_name", "standard_normal")
    choice = [options.prior] if options.prior else []
    out = options.out or options.run / f"generated_{prior}_n{options.n}_seed{options.seed}.png"
    images = (model.generate(options.n, options.seed, *choice) * 255).round().to(torch.uint8)
    with atomic_write(out) as part:
        if out.suffix == ".npz":
            np.savez(part, images=to_array(images), prior=prior, seed=options.seed)
        else:
            columns = max(10, round(options.n**0.5))
            grid = make_grid(images, nrow=columns, padding=1, pad_value=77)[None]
            # make_grid turns grey into colour. 28 pixels would be small on a screen.
            (picture,) = to_array(grid[:, : images.shape[1]])
            times = max(1, 84 // max(images.shape[2:]))
            Image.fromarray(picture.repeat(times, 0).repeat(times, 1)).save(part)
    print(f"{options.n} images, z from {prior}, seed {options.seed}: {out}")


if __name__ == "__main__":
    main()

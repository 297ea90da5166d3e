"""Draw digits from a trained autoencoder: its checkpoint alone is enough, neither data nor configuration is read."""

import command

from digitlab.config import schema
from digitlab.runs.files import atomic_write, check_links
from digitlab.runs.results import best_checkpoint


@command.ends_in_words
def main() -> None:
    """Write a PNG grid, or with --out FILE.npz the images as one array."""
    line = command.parser(__doc__)
    line.add_argument("run", type=command.path, metavar="RUN", help="directory of a completed autoencoder run")
    line.add_argument("--n", type=int, default=20, help="digits to draw (default 20)")
    line.add_argument(
        "--prior", choices=schema.choices("prior"), help="where z comes from (default: as the run was configured)"
    )
    line.add_argument("--seed", type=int, default=0, help="seed of z (default 0)")
    line.add_argument(
        "--out", type=command.path, help="a .png, or an .npz with images uint8 (n, 28, 28) (default: in RUN)"
    )
    options = line.parse_args()
    if not 1 <= options.n <= 100_000 or options.seed < 0:
        line.error("--n must be from 1 to 100000 and --seed >= 0")
    if options.out is not None and options.out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out {options.out}: must end in .png or .npz")
    check_links(options.run)
    path = best_checkpoint(options.run)
    import numpy as np  # this and torch take seconds: not for --help or a mistake in the command
    import torch
    from PIL import Image
    from torchvision.utils import make_grid

    from digitlab.models import checkpoints
    from digitlab.models.autoencoder import Autoencoder

    model = checkpoints.load_model(path)
    if not isinstance(model, Autoencoder):
        raise ValueError(f"{options.run}: holds no autoencoder, and nothing else here can generate")
    prior = options.prior or model.prior_name
    out = options.out or options.run / f"generated_{prior}_n{options.n}_seed{options.seed}.png"
    images = (model.generate(options.n, options.seed, prior) * 255).round().to(torch.uint8)
    with atomic_write(out) as part:
        if out.suffix == ".npz":
            np.savez(part, images=images.numpy(), prior=prior, seed=options.seed)
        else:
            grid = make_grid(images[:, None], nrow=max(10, round(options.n**0.5)), padding=1, pad_value=77)[0]
            enlarged = grid.repeat_interleave(3, 0).repeat_interleave(3, 1)  # an image of 28 is small to look at
            Image.fromarray(enlarged.numpy()).save(part)
    print(f"{options.n} digits, z from {prior}, seed {options.seed}: {out}")


if __name__ == "__main__":
    main()

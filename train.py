"""Run one experiment, or with -m a sweep of them: `python train.py model=kmeans init=digit`."""

import os
import sys
from pathlib import Path

try:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from digitlab import RunFailed, cli, config
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed in {sys.executable}: run 'make setup', then '. .venv/bin/activate'")


CONF = Path(__file__).resolve().parent / "conf"
failed: list[str] = []  # of the jobs of this process, why they failed


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def experiment(cfg: DictConfig) -> float:
    """Run one job in the directory that Hydra made for it."""
    from digitlab.train import run  # torch takes seconds: not for --help or a mistake in the command

    if cfg.resume is not None:
        cfg = config.restore(cfg.resume)
    config.check(cfg)  # again: a sweeper of another kind makes its own jobs
    try:
        return run(cfg, Path(HydraConfig.get().runtime.output_dir))
    except RunFailed as error:
        failed.append(str(error))
        return float("nan")


def main() -> int:
    """Run the command line; returns the exit code: 0, 1 a run failed, 2 a mistake in the command, 130 Ctrl-C."""
    config.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # mistakes reach this function, which says them in a line or two
    try:
        sys.argv[1:] = cli.in_place(sys.argv[1:])
        for cfg in cli.jobs(sys.argv[1:], CONF):
            config.check(cfg)
        experiment()
    except KeyboardInterrupt:
        return 130
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as mistake:
        print(f"Error: {cli.explain(mistake, sys.argv[1:])}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The options of Lightning's Trainer that a configuration may add to those of conf/trainer.

`+trainer.gradient_clip_val=1` passes an option on. Imports no torch.
"""

import difflib
from typing import Any

from digitlab.config.arguments import convert_value

# The options that pass, with their types.
PASSED: dict[str, Any] = {
    "fast_dev_run": int | bool,
    "min_epochs": int | None,
    "max_steps": int,
    "min_steps": int | None,
    "limit_train_batches": int | float | None,
    "limit_val_batches": int | float | None,
    "log_every_n_steps": int | None,
    "accumulate_grad_batches": int,
    "gradient_clip_val": int | float | None,
    "gradient_clip_algorithm": str | None,
    "deterministic": bool | str | None,
    "benchmark": bool | None,
    "inference_mode": bool,
    "profiler": str | None,
    "detect_anomaly": bool,
    "sync_batchnorm": bool,
}
# Those that Lightning counts by items of the loader or applies to its own steps.
NOT_WITH_BLOCKS = (
    "max_steps",
    "min_steps",
    "limit_train_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
_FILES = "a run writes only to its own directory; choose it by hydra.run.dir"
_EPOCH = "each epoch ends with the validation that selects the best one"
_OUTPUT = "a run has its own checkpoints, progress bar and summary"
_DATA = "digitlab loads and shares the data itself"
# Those that digitlab decides, with the reason or what to choose instead.
OWNED: dict[str, str] = {
    "default_root_dir": _FILES,
    "logger": "logger=csv, wandb or mlflow adds one",
    "model_registry": _FILES,
    "enable_autolog_hparams": _FILES,
    "plugins": "plugins=[FILE.py] registers models and others",
    "strategy": "trainer.devices=2 trains with DDP",
    "num_nodes": "a run stays on one machine; hydra/launcher distributes the jobs of a sweep",
    "max_time": "the result would depend on the machine; use trainer.max_epochs or max_steps",
    "overfit_batches": "data.train_size=N trains on N images, as debug=overfit does",
    "limit_test_batches": "data.test_size=N tests on N images",
    "limit_predict_batches": "a run predicts nothing",
    "val_check_interval": _EPOCH,
    "check_val_every_n_epoch": _EPOCH,
    "num_sanity_val_steps": _EPOCH,
    "enable_checkpointing": _OUTPUT,
    "enable_progress_bar": _OUTPUT,
    "enable_model_summary": _OUTPUT,
    "barebones": _OUTPUT,
    "use_distributed_sampler": _DATA,
    "reload_dataloaders_every_n_epochs": _DATA,
}


def find_option_errors(options: dict[str, Any], known: list[str], has_blocks: bool) -> list[str]:
    """List what is wrong with options of the Trainer.

    Args:
        options: The options that conf/trainer lacks.
        known: The keys of conf/trainer.
        has_blocks: Whether the model steps by hand through blocks of minibatches.
    """
    errors = []
    for key, value in options.items():
        start = f"trainer.{key}={value}"
        if key in OWNED:
            errors.append(f"{start}: is not passed on: {OWNED[key]}")
        elif key not in PASSED:
            close = difflib.get_close_matches(key, [*known, *PASSED], n=1)
            remedy = f"did you mean trainer.{close[0]}?" if close else "leave it out"
            errors.append(f"{start}: Lightning's Trainer has no such option; {remedy}")
        elif has_blocks and key in NOT_WITH_BLOCKS:
            reason = "steps by hand through blocks of minibatches, and Lightning counts blocks"
            errors.append(f"{start}: the model {reason}; leave it out")
        else:
            try:
                convert_value(value, PASSED[key])
            except ValueError as error:
                errors.append(f"{start}: {error}")
    return errors

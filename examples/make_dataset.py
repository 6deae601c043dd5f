"""Write a small set of real handwritten digits, without a network: `make_dataset.py FOLDER`.

The 1,797 images of 8x8 pixels that scikit-learn brings along become the four IDX files of MNIST,
so that whatever reads them reads MNIST as well. `--as zip` packs these into one archive, `--as
pictures` writes one file an image. The same bytes are written every time.
"""

import argparse
import gzip
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FORMS = ("idx", "zip", "pictures")
NUM_TEST = 360  # a fifth

Sets = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images `(n, 8, 8) uint8` and their labels `(n,) uint8`, by the name of the set."""


def main() -> None:
    """Write the digits and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files go; made if it is not there")
    parser.add_argument(
        "--as",
        dest="form",
        choices=FORMS,
        default="idx",
        help="four IDX files, a zip of these, or one PGM file an image",
    )
    arguments = parser.parse_args()
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255, as in MNIST
    labels = digits.target.astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=NUM_TEST, stratify=labels, random_state=0
    )
    sets = {"train": (train_images, train_labels), "t10k": (test_images, test_labels)}
    files = pictures(sets) if arguments.form == "pictures" else idx_files(sets)
    if arguments.form == "zip":
        files = {"digits.zip": zipped(files)}
    for name, data in files.items():
        write(arguments.folder / name, data)
    print(f"{arguments.folder}: {len(labels)} digits in {len(files)} files")


def idx_files(sets: Sets) -> dict[str, bytes]:
    """Return the four files of MNIST by their names."""
    files = {}
    for name, (images, labels) in sets.items():
        files[f"{name}-images-idx3-ubyte.gz"] = idx(images)
        files[f"{name}-labels-idx1-ubyte.gz"] = idx(labels)
        print(f"{name}-images-idx3-ubyte.gz: {' x '.join(map(str, images.shape))} bytes")
    return files


def idx(values: np.ndarray) -> bytes:
    """Return bytes of any shape as a gzipped IDX file (http://yann.lecun.com/exdb/mnist/)."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return gzip.compress(header + values.tobytes(), mtime=0)  # no time: same bytes


def pictures(sets: Sets) -> dict[str, bytes]:
    """Return one PGM file an image, in a folder for each digit, numbered through in their order."""
    return {
        f"{name}/{label}/{number:04}.pgm": b"P5\n8 8\n255\n" + image.tobytes()
        for name, (images, labels) in sets.items()
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    }


def zipped(files: dict[str, bytes]) -> bytes:
    """Return the files in one archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in files.items():
            packed.writestr(zipfile.ZipInfo(name), data)  # of 1980: same bytes
    return archive.getvalue()


def write(path: Path, data: bytes) -> None:
    """Write a file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


if __name__ == "__main__":
    main()

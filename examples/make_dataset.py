"""Write a small set of real handwritten digits, without a network: `make_dataset.py FOLDER`.

The 1,797 images of 8x8 pixels that scikit-learn brings along become the four IDX files of MNIST,
so that whatever reads them reads MNIST as well. The same bytes are written every time.
"""

import argparse
import gzip
import os
import struct
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

NUM_TEST = 360  # a fifth


def main() -> None:
    """Write the four files and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files go; made if it is not there")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255, as in MNIST
    labels = digits.target.astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=NUM_TEST, stratify=labels, random_state=0
    )
    write_idx(folder / "train-images-idx3-ubyte.gz", train_images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", train_labels)
    write_idx(folder / "t10k-images-idx3-ubyte.gz", test_images)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", test_labels)


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes of any shape as a gzipped IDX file (http://yann.lecun.com/exdb/mnist/)."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))  # no time: same bytes
    part.replace(path)
    print(f"{path}: {' x '.join(map(str, values.shape))} bytes")


if __name__ == "__main__":
    main()

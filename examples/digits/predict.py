"""Tell the digits on new images with a network that train.py or train_mpi.py has trained."""

import argparse
import csv
from pathlib import Path

import torch
from digits import DigitNet, read_idx


def main() -> None:
    """Write predictions.csv: a line an image, with its digit and how likely that is."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_url", type=Path, required=True, help="folder with IDX images")
    parser.add_argument("--ckpt_url", type=Path, required=True, help="folder with model.pt")
    parser.add_argument("--train_url", type=Path, required=True, help="folder for the results")
    parser.add_argument("--batch_size", type=int, default=1000, help="images at a time")
    args, _ = parser.parse_known_args()  # platforms may add arguments of their own

    files = sorted(args.data_url.glob("*images*"))
    if not files:
        raise FileNotFoundError(f"no *images* in {args.data_url}")
    weights = torch.load(args.ckpt_url / "model.pt", weights_only=True)
    args.train_url.mkdir(parents=True, exist_ok=True)
    with (args.train_url / "predictions.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("file", "image", "digit", "likelihood"))
        for file in files:
            likelihoods, found = predict(weights, read_idx(file), args.batch_size).max(1)
            values = zip(found.tolist(), likelihoods.tolist(), strict=True)
            rows.writerows((file.name, i, digit, f"{p:.4f}") for i, (digit, p) in enumerate(values))
            print(f"{file.name}: {len(found)} images")


@torch.inference_mode()
def predict(
    weights: dict[str, torch.Tensor], images: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Return how likely each digit is: `(n, height, width) uint8` to `(n, 10) float32`."""
    model = DigitNet(*images.shape[-2:], channels=len(weights["0.weight"]))
    model.load_state_dict(weights)
    batches = images.unsqueeze(1).split(batch_size)
    return torch.cat([model(batch).softmax(1) for batch in batches])


if __name__ == "__main__":
    main()

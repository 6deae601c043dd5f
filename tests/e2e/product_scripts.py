"""Scripts as people write them for other products: nothing in them knows of us."""

TIONE_START = """\
set -e
python main.py --data_dir /opt/ml/input/data/train --output_dir /opt/ml/output --epochs 2
"""

TIONE_MAIN = """\
import argparse
import json
import os

import torch
from mpi4py import MPI
from torch.nn.functional import cross_entropy

from digits import DigitNet, accuracy, load_digits
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir")
parser.add_argument("--output_dir")
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
comm = MPI.COMM_WORLD
torch.manual_seed(0)
train, test = load_digits(Path(args.data_dir))
model = DigitNet(8, 8, 8)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(args.epochs):
    share = train.shuffled_share(comm.Get_rank(), comm.Get_size(), epoch)
    for images, labels in share.split(32):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        for parameter in model.parameters():
            comm.Allreduce(MPI.IN_PLACE, parameter.grad.numpy())
            parameter.grad /= comm.Get_size()
        optimizer.step()
if comm.Get_rank() == 0:
    result = {"ranks": comm.Get_size(), "accuracy": accuracy(model, test)}
    with open(os.path.join(args.output_dir, "result.json"), "w") as file:
        json.dump(result, file)
"""

OPENI_GPU = """\
import argparse
import json
import os
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, "/code")
from digits import DigitNet, accuracy, load_digits

parser = argparse.ArgumentParser(description="PyTorch MNIST Example")
parser.add_argument("--epoch_size", type=int, default=1, help="how much epoch to train")
parser.add_argument("--batch_size", type=int, default=256)

if __name__ == "__main__":
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, test = load_digits(Path("/dataset"))
    model = DigitNet(8, 8, 8).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for epoch in range(args.epoch_size):
        for images, labels in train.shuffled_share(0, 1, epoch).split(args.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    torch.save(model.state_dict(), "/model/mnist.pkl")
    told = {"args": vars(args), "code": sorted(os.listdir("/code"))}
    told["accuracy"] = accuracy(model, test)
    Path("/model/result.json").write_text(json.dumps(told))
"""

OPENI_NPU = """\
import argparse
import json
import os
import shutil
from pathlib import Path

import torch

from digits import DigitNet, accuracy, load_digits

parser = argparse.ArgumentParser(description="MNIST Example")
parser.add_argument("--data_url", required=True, help="path to training data")
parser.add_argument("--ckpt_url", required=True, help="the pretrained model")
parser.add_argument("--train_url", required=True, help="where the output goes")
parser.add_argument("--epoch_size", type=int, default=5)

args, unknown = parser.parse_known_args()
model = DigitNet(8, 8, 8)
model.load_state_dict(torch.load(os.path.join(args.ckpt_url, "mnist.pkl")))
train, test = load_digits(Path(args.data_url))
Path("/cache/work").mkdir()
told = {"epoch_size": args.epoch_size, "images": len(train.labels)}
Path("/cache/work/result.json").write_text(json.dumps(told))
shutil.move("/cache/work/result.json", "/cache/output/result.json")
torch.save(model.state_dict(), os.path.join(args.train_url, "mnist.ckpt"))
"""

MODELARTS = """\
import argparse
import json
import os

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--data_url", type=str)
parser.add_argument("--train_url", type=str)
parser.add_argument("--epochs", type=int)
parser.add_argument("--lr", type=float)
parser.add_argument("--optimizer", choices=["adam", "sgd"])
args = parser.parse_args()
assert os.environ["VC_TASK_INDEX"] == "0" and os.environ["MA_NUM_HOSTS"] == "1"
boot_file = os.path.join(os.environ["MA_JOB_DIR"], "demo-code", "train.py")
assert os.path.samefile(boot_file, __file__)
dist.init_process_group("gloo")
total = torch.tensor([float(len(os.listdir(args.data_url)))])
dist.all_reduce(total)
with open(f"/cache/rank-{dist.get_rank()}", "w") as file:
    file.write("scratch")
if dist.get_rank() == 0:
    with open(os.path.join(args.train_url, "result.json"), "w") as file:
        json.dump(vars(args) | {"total": total.item()}, file)
dist.destroy_process_group()
"""

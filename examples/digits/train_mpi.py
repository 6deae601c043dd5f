"""Train the same network with MPI: weights by Bcast, gradients by Allreduce, in place."""

import torch
from digits import DigitNet, TrainingOrder, accuracy, finish_epoch, load_digits, save_results
from mpi4py import MPI
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from train import parse_arguments, resume, save

from trainjob import progress
from trainjob.checkpoint import Checkpoints, should_stop


def main() -> None:
    """Train from the last checkpoint on, to the end or until we are asked to stop."""
    args = parse_arguments()
    comm = MPI.COMM_WORLD
    rank, world_size = comm.Get_rank(), comm.Get_size()

    # Each rank starts from weights of its own; without the broadcast they would stay different.
    torch.manual_seed(args.seed + rank)
    train_set, test_set = load_digits(args.data_url)
    order = TrainingOrder(train_set, args.epochs, args.batch_size, args.seed, rank, world_size)
    model = DigitNet(*train_set.images.shape[-2:], args.channels)
    broadcast_weights(model, comm)
    gradients = join_gradients(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = CosineAnnealingLR(optimizer, args.epochs)
    checkpoints = Checkpoints(args.checkpoint_dir)
    parts = {"net": model, "optimizer": optimizer, "schedule": schedule}
    step, history, loss_sums = resume(checkpoints, parts, world_size)
    loss_sum = loss_sums[rank]
    for images, labels in order.batches_after(step):
        loss = cross_entropy(model(images), labels)
        gradients.zero_()
        loss.backward()
        comm.Allreduce(MPI.IN_PLACE, gradients)
        gradients /= world_size
        optimizer.step()
        loss_sum += loss.item()
        step += 1
        progress.report(step, order.num_steps, order.epoch_of(step), loss=loss.item())
        ends_epoch = step % order.steps_per_epoch == 0
        if ends_epoch:
            schedule.step()
            mean_loss = comm.allreduce(loss_sum) / order.steps_per_epoch / world_size
            if rank == 0:
                finish_epoch(args.train_url, model, test_set, mean_loss, history)
            loss_sum = 0.0
        stop = should_stop(every=10)
        if stop or ends_epoch or step % args.save_every == 0:
            save(checkpoints, parts, step, history, loss_sum)
        if stop:
            break
    if rank == 0:
        save_results(args.train_url, model, accuracy(model, test_set), history)


def broadcast_weights(model: nn.Module, comm: MPI.Comm) -> None:
    """Give every rank the weights of rank 0."""
    for weights in model.parameters():
        comm.Bcast(weights.detach(), root=0)  # detach shares the memory


def join_gradients(model: nn.Module) -> torch.Tensor:
    """Make the gradients of all weights views of one buffer, and return the buffer.

    So MPI sums them in one call, in the memory where backward() puts them. They stay float32:
    MPI has no type for bfloat16, and Open MPI gives wrong sums of it without an error.
    """
    weights = list(model.parameters())
    sizes = [w.numel() for w in weights]
    buffer = torch.zeros(sum(sizes), dtype=torch.float32)
    for w, gradient in zip(weights, buffer.split(sizes), strict=True):
        w.grad = gradient.view_as(w)
    return buffer


if __name__ == "__main__":
    main()

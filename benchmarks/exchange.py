"""Cost for ranks to share an iteration's completions, in bytes, seconds and MB: as tensors, and as pickled objects.

    OMP_NUM_THREADS=1 python benchmarks/exchange.py --ranks 8 --completions 512 --tokens 1024 --allowed 0 50

Starts gloo ranks on this machine. Each makes random completions of one length, whose sampler left `allowed` tokens at
each position (0: the whole vocabulary), and goes through the micro-batches of an iteration: as the trainer does
(`tensors`), or with all trajectories gathered on every rank by `all_gather_object` (`objects`).
"""

import argparse
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch

import hf_rlhf.ppo.exchange
from hf_rlhf.distributed import gather_in_order, take_share
from hf_rlhf.ppo.experience import Experience, micro_batches
from hf_rlhf.types import Completion, ForwardPass, Score, TokenSupport, Trajectory

VOCABULARY = 49152
FILLED_IN = ("logprobs", "reference_logprobs", "kl", "values", "entropy")


def main():
    """Start the ranks for each way and each number of allowed tokens, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--completions", type=int, default=512, help="of each rank, a multiple of minibatches")
    parser.add_argument("--tokens", type=int, default=1024, help="of each completion; its prompt has 8")
    parser.add_argument("--allowed", type=int, nargs="+", default=[0, 50], help="tokens left at each position; 0: all")
    parser.add_argument("--ways", nargs="+", default=["tensors", "objects"], choices=["tensors", "objects"])
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    print(f"{args.ranks} ranks x {args.completions} completions x {args.tokens} tokens, {args.epochs} PPO epochs of")
    print(f"{args.minibatches} minibatches; the largest of all ranks\n")
    print("| allowed | way | received, MB | wall, s | processor, s | rollouts held, MB | peak besides, MB |")
    print("|---|---|---|---|---|---|---|")
    for allowed in args.allowed:
        for way in args.ways:
            torch.multiprocessing.spawn(measure, (args, allowed, way), nprocs=args.ranks)


def measure(rank: int, args: argparse.Namespace, allowed: int, way: str) -> None:
    """Run one iteration on this rank; the first prints a row of the table."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=args.ranks)
    config = SimpleNamespace(
        seed=0,
        num_ppo_epochs=args.epochs,
        minibatch_size=args.completions * args.ranks // args.minibatches,
        updates_per_iteration=args.epochs * args.minibatches,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=-(-args.completions // args.minibatches // 8),
    )
    received = 0
    exchange = hf_rlhf.ppo.exchange.exchange

    def counted(outgoing, incoming):
        nonlocal received
        received += sum(incoming)
        return exchange(outgoing, incoming)

    hf_rlhf.ppo.exchange.exchange = counted
    before = resident("VmRSS")
    trajectories = make_trajectories(rank, args.completions, args.tokens, allowed, compact=way == "tensors")
    if way == "objects":
        received = (args.ranks - 1) * len(pickle.dumps(trajectories))
    torch.distributed.barrier()
    held = resident("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the peak begins anew
    wall, processor = time.perf_counter(), time.process_time()
    tokens = 0
    for experience in (
        through_tensors(trajectories, config) if way == "tensors" else through_objects(trajectories, config)
    ):
        tokens += int(experience.mask.sum())
    numbers = [
        received / 1e6,
        time.perf_counter() - wall,
        time.process_time() - processor,
        held - before,
        resident("VmHWM") - held,
    ]
    assert tokens == args.epochs * args.completions * args.tokens
    largest = torch.tensor(numbers)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    if rank == 0:
        print(
            f"| {allowed or 'all'} | {way} | " + " | ".join(f"{number:.1f}" for number in largest.tolist()) + " |",
            flush=True,
        )
    torch.distributed.destroy_process_group()


def through_tensors(trajectories, config) -> Iterator[Experience]:
    """Exchange tensors between ranks, each of which keeps its own trajectories; see `hf_rlhf.ppo.exchange`."""
    experience = with_advantages(experience_of(trajectories))
    for batch in micro_batches(experience, config, 0):
        yield batch.experience


def through_objects(trajectories, config) -> Iterator[Experience]:
    """Gather all trajectories on every rank, and deal out each minibatch by length."""
    gathered = gather_in_order(trajectories)
    bare = [replace(each, completion=replace(each.completion, support=None)) for each in gathered]
    experience = with_advantages(experience_of(bare))
    experience.sequences.support = [
        each.completion.support for each in gathered
    ]  # as lists of tensors, as an engine gives them
    lengths = experience.sequences.attention_mask.sum(dim=1)
    for epoch in range(config.num_ppo_epochs):
        shuffle = torch.Generator().manual_seed(epoch)
        for minibatch in torch.randperm(len(experience), generator=shuffle).split(config.minibatch_size):
            by_length = minibatch[lengths[minibatch].argsort(stable=True)]
            for rows in torch.tensor(take_share(by_length.tolist())).split(config.per_device_train_batch_size):
                yield experience[rows]


def experience_of(trajectories: Sequence[Trajectory]) -> Experience:
    """Make experience with random numbers in the columns of the forward pass, by the number of the completion."""
    passes = []
    for b, trajectory in enumerate(trajectories):
        generator = torch.Generator().manual_seed(b)
        columns = {name: torch.randn(len(trajectory.completion.ids), generator=generator) for name in FILLED_IN}
        passes.append(ForwardPass(**columns))
    return Experience.from_rollout(trajectories, [Score(1.0)] * len(trajectories), passes, kl_coef=0.1)


def with_advantages(experience: Experience) -> Experience:
    """Fill in the columns that the trainer computes besides."""
    experience.per_token_rewards, experience.advantages, experience.returns = (experience.kl.clone() for _ in range(3))
    return experience


def make_trajectories(seed: int, count: int, tokens: int, allowed: int, *, compact: bool) -> list[Trajectory]:
    """Make random completions; with `compact`, their support is as `collect` leaves it, else a list of tensors."""
    generator = torch.Generator().manual_seed(seed)

    def completion(b: int) -> Trajectory:
        ids = torch.randint(VOCABULARY, (tokens,), generator=generator).tolist()
        support = None
        if allowed:
            flat = torch.randint(VOCABULARY, (tokens * allowed,), generator=generator, dtype=torch.int32)
            support = [row.clone() for row in flat.split(allowed)]
            support = TokenSupport.of(support) if compact else support
        logprobs = torch.randn(tokens, generator=generator)
        return Trajectory({"prompt": ""}, [1] * 8, Completion(ids, logprobs.tolist(), True, support), "")

    return [completion(b) for b in range(count)]


def resident(key: str) -> float:
    """Return the MB of this process: `VmRSS` now, `VmHWM` at most."""
    with open("/proc/self/status", encoding="utf-8") as file:
        (line,) = [line for line in file if line.startswith(key)]
    return int(line.split()[1]) / 1e3


if __name__ == "__main__":
    main()

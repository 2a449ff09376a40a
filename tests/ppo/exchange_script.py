"""One of three ranks that hold 7, 4 and 1 of an iteration's completions.

    torchrun --nproc_per_node 3 exchange_script.py FOLDER

Writes FOLDER/facts<rank>.json: what this rank held, sent and learned from, for `test_exchange.py` to compare with one
process.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from ppo.exchange_runs import MINIBATCH, SIZES, Rows, experience_of, in_numbers, own_loop

import hf_rlhf.ppo.exchange as exchange
from hf_rlhf.distributed import (
    gather_in_order,
    gather_numbers,
    gather_rows,
    global_mean,
    global_moments,
    homes,
    rank,
    take_share,
)
from hf_rlhf.ppo.experience import micro_batches

facts = {}


def main(folder):
    torch.distributed.init_process_group("gloo")
    here, sent, objects = rank(), [], []
    all_gather_object, swap = torch.distributed.all_gather_object, exchange.exchange

    def recorded_objects(into, item, *args, **kwargs):
        objects.append(repr(item))
        return all_gather_object(into, item, *args, **kwargs)

    def recorded_swap(outgoing, incoming):
        sent.append([len(part) for part in outgoing])
        return swap(outgoing, incoming)

    torch.distributed.all_gather_object, exchange.exchange = recorded_objects, recorded_swap
    own = [number for number, home in enumerate(homes(SIZES)) if home.rank == here]
    experience = experience_of(own)
    batches = [in_numbers(batch) for batch in micro_batches(experience, Rows(), 0)]
    torch.distributed.all_gather_object = all_gather_object
    facts.update(rows=len(experience), batches=batches, sent=list(sent), objects=list(objects))

    facts["in order"] = gather_in_order([str(number) for number in own])
    facts["rows in order"] = gather_rows(torch.tensor([[number] for number in own])).flatten().tolist()
    facts["numbers in order"] = gather_numbers([None if number % 2 else number for number in own])
    facts["of one rank"] = gather_rows(torch.full((int(here == 2), 2), 5.0)).tolist()
    values = torch.arange(float(MINIBATCH))
    values, mask = (torch.tensor(take_share(column.tolist())) for column in (values, values > 2))
    mask = mask & (here != 1)  # which counts nothing
    facts["mean"], facts["moments"] = (
        global_mean(values, mask).item(),
        [part.item() for part in global_moments(values, mask)],
    )

    torch.distributed.all_gather_object = recorded_objects
    objects.clear()
    facts["metrics"] = own_loop(Path(folder) / str(here), own)
    torch.distributed.all_gather_object = all_gather_object
    facts["objects of a run"] = objects
    (Path(folder) / f"facts{here}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
    gc.collect()  # DDP keeps gloo's threads running until then, and Python must not end before them

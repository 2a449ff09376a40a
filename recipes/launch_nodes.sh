#!/usr/bin/env bash
# Start a recipe on several machines, one process for each GPU. Run the same line on every machine, or once under Slurm:
#
#   srun --nodes 2 --ntasks-per-node 1 recipes/launch_nodes.sh recipes/ppo.py --config recipes/configs/hh_rlhf/ppo.yaml
#
# That is DDP. STRATEGY=fsdp2 (or zero2, zero3) before it takes the file of that name in accelerate_configs/.
# Without Slurm: NODES=2 NODE_RANK=0 HEAD=10.0.0.1 recipes/launch_nodes.sh ... , and NODE_RANK=1 on the other machine.
# All machines read the same files: put output_dir on a disk that they share.
set -euo pipefail

NODES=${NODES:-${SLURM_NNODES:?say how many machines: NODES=2}}
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:?say which machine this is, from 0: NODE_RANK=0}}
if [[ -z ${HEAD:-} ]]; then
    HEAD=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?say where machine 0 is: HEAD=10.0.0.1}" | head -n 1)
fi
PROCESSES=${PROCESSES:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
if [[ $PROCESSES == 0 ]]; then
    echo "no GPU on $(hostname); to try it on CPUs: ACCELERATE_USE_CPU=true PROCESSES=1" >&2
    exit 2
fi

# After SIGTERM a run finishes its iteration and saves; torchrun by itself would kill it after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

PORT=${PORT:-29500}
STRATEGY=${STRATEGY:-ddp}
CONFIG=$(dirname "${BASH_SOURCE[0]}")/accelerate_configs/$STRATEGY.yaml
if [[ ! -f $CONFIG ]]; then
    echo "STRATEGY=$STRATEGY is invalid: there is no $CONFIG" >&2
    exit 2
fi
if [[ $STRATEGY == ddp ]]; then  # torchrun starts it on CPUs too
    exec torchrun --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "$PROCESSES" \
        --master_addr "$HEAD" --master_port "$PORT" "$@"
fi
exec accelerate launch --config_file "$CONFIG" --num_machines "$NODES" --machine_rank "$NODE_RANK" \
    --num_processes $((NODES * PROCESSES)) --main_process_ip "$HEAD" --main_process_port "$PORT" "$@"

"""Rows and flags for the recipes' tests."""

from tiny import WORDS

PPO_FLAGS = [
    "--max_prompt_length", "32", "--max_completion_length", "6", "--num_ppo_epochs", "1", "--max_steps", "2",
    "--learning_rate", "1e-2",
]  # fmt: skip


def prompt_rows(count=16):
    texts = [" ".join((WORDS * 2)[i : i + 2 + i % 5]) for i in range(count)]
    return [{"prompt": [{"role": "user", "content": text}]} for text in texts]


def conversational_pairs(count=16):
    """The good answer says "happy"."""
    return [
        row
        | {
            "chosen": [{"role": "assistant", "content": f"happy {WORDS[i % 10]} happy"}],
            "rejected": [{"role": "assistant", "content": f"sad {WORDS[i % 10]} sad"}],
        }
        for i, row in enumerate(prompt_rows(count))
    ]


def plain_pairs(count=16):
    return [
        {"prompt": f"the {WORDS[i % 10]} is ", "chosen": f"happy {WORDS[i % 7]}", "rejected": f"sad {WORDS[i % 7]}"}
        for i in range(count)
    ]


def saving_command(command, flags, write_rows):
    """The command line of a recipe that makes four updates and saves twice."""
    flags = [flag for flag in flags if flag not in ("--save_strategy", "no")]
    saves = ["--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4"]
    if command == "ppo":
        own = [part for part in PPO_FLAGS if part not in ("--max_steps", "2")]
        rows = ["--dataset_name", write_rows(prompt_rows()), "--reward_funcs", "tiny:happy_reward", *own]
    elif command == "reward":
        rows = ["--dataset_name", write_rows(conversational_pairs()), "--logging_steps", "2"]
    else:
        texts = [{"messages": [*row["prompt"], *row["chosen"]]} for row in conversational_pairs()]
        rows = ["--dataset_name", write_rows(texts), "--logging_steps", "2"]
    return [command, *rows, *flags, *saves]

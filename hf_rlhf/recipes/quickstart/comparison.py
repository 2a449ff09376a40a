"""Stage 5: the trained policy against the model it started from, on messages that no stage has seen."""

from pathlib import Path

from hf_rlhf.data.quickstart import quickstart_prompts
from hf_rlhf.evaluation.before_after import Comparison, compare_with_start
from hf_rlhf.feedback.simulate import CheerfulAnnotator
from hf_rlhf.models.load import load_causal_lm, load_tokenizer
from hf_rlhf.models.precision import current_device
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.recipes.quickstart.arguments import QuickstartArguments
from hf_rlhf.recipes.quickstart.replies import prompt_row
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn


def compare(args: QuickstartArguments, reward_model: Path, policy: Path) -> Comparison:
    """Stage 5: judge replies to the held-out messages by the annotator, who is not what PPO trained against."""
    from peft import PeftModel

    tokenizer = load_tokenizer(args.model_name_or_path)
    model = PeftModel.from_pretrained(load_causal_lm(args.model_name_or_path, **args.model_kwargs), str(policy))
    model.to(current_device())
    scorer, _ = load_reward_model(str(reward_model), policy=model)
    annotator = CheerfulAnnotator()
    rows = [prompt_row(text, tokenizer) for text in quickstart_prompts()["test"]]
    stop_at_end_of_turn(model, tokenizer, rows[0], args.sampling)
    return compare_with_start(
        model,
        tokenizer,
        rows,
        args.sampling,
        [row_seed(args.seed, "evaluation", number) for number in range(len(rows))],
        judge=lambda trajectory: annotator.score(trajectory.text, trajectory.completion.stopped),
        reward=LearnedReward(scorer, tokenizer, device=current_device()),
    )

"""Push a finished run to the Hub: one commit, made after everything is on disk."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hf_rlhf.credentials import hide_tokens
from hf_rlhf.errors import InputError, PushError

LEFT_OUT = [
    *("checkpoint-*", "*/checkpoint-*", "*.set-aside*", "trajectories/*", "vllm/*", "run.lock"),
    *(".*", "*/.*", "*/README.md"),
    *(f"*.{suffix}" for suffix in ("pt", "pth", "bin", "pkl", "pickle", "joblib", "ckpt")),
]
"""Checkpoints, trajectories (which `hf-rlhf show` pushes), adapters for vLLM servers, the lock, hidden files, PEFT's
drafts of cards, and kinds of pickles."""

ANSWER_SECONDS = 60.0
"""Most seconds that the Hub may take to be reached, to answer, and to take the next bytes.

Its library would wait for ever.
"""


def open_repository(folder: Path, repo_id: str | None, *, private: bool | None = None) -> str:
    """Make sure, before anything is trained, that a push can succeed; return the full name of the repository.

    It is made here unless it exists. The token is that of `hf auth login` or HF_TOKEN. Raises `InputError` for a wrong
    name, without a token that may write, and without the Hub in reach.
    """
    from huggingface_hub import create_repo

    try:
        with _hub_errors():
            return create_repo(repo_id or folder.absolute().name, private=private, exist_ok=True).repo_id
    except PushError as error:
        raise InputError(
            f"push_to_hub: {error}\nNothing has been trained. Mend it, or train without push_to_hub and push the"
            f" result with: {_upload_command(folder, repo_id)}"
        ) from error


def push_folder(folder: Path, repo_id: str | None, *, private: bool | None = None) -> str:
    """Upload `folder` to the model repository `repo_id` (by default named like the folder); returns its address.

    Raises `PushError` when the Hub refuses, does not answer or cannot be reached: the folder is complete, and can be
    pushed again.
    """
    from huggingface_hub import create_repo, upload_folder

    try:
        with _hub_errors():
            repository = create_repo(repo_id or folder.absolute().name, private=private, exist_ok=True)
            return str(
                upload_folder(
                    repo_id=repository.repo_id,
                    folder_path=str(folder),
                    ignore_patterns=LEFT_OUT,
                    commit_message="Push a model trained with hf_rlhf",
                )
            )
    except PushError as error:
        raise PushError(
            f"the model is trained and saved in {folder}, but the push failed: {error}\n"
            f"Push it again with: {_upload_command(folder, repo_id)}"
        ) from error


def push_dataset(
    folder: Path,
    repo_id: str,
    files: Sequence[str],
    *,
    private: bool | None = None,
    message: str = "Push feedback with hf_rlhf",
) -> str:
    """Upload some files of `folder` to the dataset repository `repo_id`, made unless it exists; return its address.

    Nothing else that lies there is uploaded.

    Raises `PushError` when the Hub refuses, does not answer or cannot be reached.
    """
    from huggingface_hub import create_repo, upload_folder

    try:
        with _hub_errors():
            repository = create_repo(repo_id, private=private, exist_ok=True, repo_type="dataset")
            return str(
                upload_folder(
                    repo_id=repository.repo_id,
                    repo_type="dataset",
                    folder_path=str(folder),
                    allow_patterns=list(files),
                    commit_message=message,
                )
            )
    except PushError as error:
        included = [word for name in files for word in ("--include", name)]
        command = shlex.join(["hf", "upload", "--repo-type", "dataset", repo_id, str(folder), ".", *included])
        raise PushError(
            f"the dataset is complete in {folder}, but the push failed: {error}\nPush it again with: {command}"
        ) from error


def _upload_command(folder: Path, repo_id: str | None) -> str:
    """Return the shell command that pushes the same files."""
    exclude = [part for pattern in LEFT_OUT for part in ("--exclude", pattern)]
    return shlex.join(["hf", "upload", repo_id or folder.absolute().name, str(folder), *exclude])


@contextmanager
def _hub_errors() -> Iterator[None]:
    """Raise `PushError` for every error of the Hub's client, and for a Hub that does not answer."""
    from huggingface_hub import get_session

    client = get_session()
    before, client.timeout = client.timeout, ANSWER_SECONDS
    try:
        yield
    except Exception as error:  # the client, its transport and its checks of names each raise their own types
        reason = " ".join(str(error).split()) or "no answer"
        raise PushError(f"{type(error).__name__}: {hide_tokens(reason)}. {_advice(error)}") from error
    finally:
        client.timeout = before


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        return (
            "Log in with `hf auth login` or set HF_TOKEN, to a token that may write there (`hf auth whoami` shows"
            " whose)"
        )
    if type(error).__name__ == "HFValidationError":
        return "Give hub_model_id as name or owner/name, of letters, digits, `-`, `_` and `.`"
    if status == 400:
        return "The answer names what the Hub does not take: hub_model_id, a file, or the metadata of README.md"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "Unset HF_HUB_OFFLINE"
    return "Is the Hub in reach, and HF_ENDPOINT right?"

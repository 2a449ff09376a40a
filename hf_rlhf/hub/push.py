"""Push a finished run to the Hub: one commit, made after everything is on disk."""

from pathlib import Path

from hf_rlhf.errors import InputError

LEFT_OUT = ["checkpoint-*", "**/checkpoint-*", ".*", "run.lock", "*.set-aside*", "*.pt", "*.pth", "*.bin"]
"""Checkpoints, hidden files, and anything that is a pickle."""


def push_folder(folder: Path, repo_id: str | None, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload `folder` to the model repository `repo_id` (by default named like the folder); returns its address.

    Raises `InputError` when the Hub refuses or cannot be reached: the folder is complete, and can be pushed again.
    """
    from huggingface_hub import create_repo, upload_folder
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        repository = create_repo(repo_id or folder.name, private=private, exist_ok=True, token=token)
        return str(
            upload_folder(
                repo_id=repository.repo_id,
                folder_path=str(folder),
                ignore_patterns=LEFT_OUT,
                commit_message="Push a model trained with hf_rlhf",
                token=token,
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"the model is trained and saved in {folder}, but the push failed: {error}\n"
            f"Push it again with: hf upload {repo_id or folder.name} {folder}"
        ) from error

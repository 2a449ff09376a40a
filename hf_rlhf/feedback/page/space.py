"""A folder that is a ready Docker Space of the page: its files, the tasks, and the code that they need."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.page.space_app import TASKS_FILE
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.feedback.tasks import Task

PACKAGE = Path(__file__).parents[2]
_CODE = (
    "__init__.py",
    "lazy.py",
    "errors.py",
    *(f"feedback/{name}.py" for name in ("__init__", "forms", "tasks", "store", "event_log")),
    *(f"feedback/{name}.py" for name in ("assignments", "database", "agreement", "bias", "coefficients")),
)

_DOCKERFILE = """\
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 user && mkdir -p /data && chown user /data
USER user
WORKDIR /home/user/app
COPY --chown=user requirements.txt .
RUN pip install --user --no-cache-dir -r requirements.txt
COPY --chown=user . .
ENV PYTHONUNBUFFERED=1
EXPOSE 7860
CMD ["python", "-m", "hf_rlhf.feedback.page.space_app"]
"""

_REQUIREMENTS = """\
starlette>=0.40
uvicorn>=0.30
huggingface_hub>=1.0
numpy>=1.26
"""

_README = """\
---
title: Feedback
emoji: 📝
colorFrom: blue
colorTo: gray
sdk: docker
app_port: 7860
pinned: false
---

# Feedback on replies of language models

A page on which people compare, rate and correct {count} replies. It was written by `hf-rlhf label --space`.

## Start it

1. Make a Space and upload this folder: `hf upload USER/NAME . --repo-type space`. Annotators without access to a
   private Space need a public one. The files of a public Space can be read by everybody: then do not upload
   `tasks.db` with it, but to the dataset of step 3: `hf upload USER/DATASET tasks.db tasks.db --repo-type dataset`.
2. In its settings, add the secret `LABEL_PASSWORD`. The page asks each annotator for it, and shows nothing without.
3. The disk of a Space is emptied whenever it starts again. So that no answer is lost then, make a private dataset,
   add the variable `LABEL_DATASET` (`USER/DATASET`) and the secret `HF_TOKEN` (a token that may write to it). The
   answers are pushed as JSON lines every {minutes} minutes and when the Space ends, and read again when it starts.
   Storage that is attached to the Space at `/data` keeps them as well.

The page has no names of models: `tasks.db` holds none.{gold}

## Get the answers

```bash
hf download USER/DATASET --repo-type dataset --include "events/*" --local-dir answers
hf-rlhf feedback import --dataset_name answers/events/NAME.jsonl --store feedback.db   # once for each file
```

`feedback.db` is the store with the same tasks and the names of the models.
"""


def write_space(
    folder: str | Path,
    tasks: Iterable[Task],
    guidelines: str | None = None,
    *,
    overlap: int | None = None,
    gold_every: int | None = None,
) -> Path:
    """Write a Docker Space that asks about tasks, and return its folder.

    Raises `InputError` for a folder that has files in it, or when there are no tasks.
    """
    from hf_rlhf.feedback.page.space_app import MINUTES

    folder, tasks = Path(folder), list(tasks)
    if not tasks:
        raise InputError("space is invalid: there are no tasks. Give dataset_name, with rows to ask about.")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"space={folder} is invalid: there are files in it. Choose a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"space={folder} is invalid: {error.strerror}. Choose another folder.") from error
    for name in _CODE:
        target = folder / "hf_rlhf" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, target)
    ignore = shutil.ignore_patterns("__pycache__", "space.py")
    shutil.copytree(PACKAGE / "feedback/page", folder / "hf_rlhf/feedback/page", ignore=ignore)
    with FeedbackStore(folder / TASKS_FILE) as store:
        store.add_tasks(replace(task, sources=(), columns={}) for task in tasks)
        settings = {"guidelines": guidelines, "overlap": overlap, "gold_every": gold_every}
        for name, value in settings.items():
            if value is not None:
                store.set(name, str(value))
    gold = " It holds the right answers of gold questions: keep it where annotators cannot read it."
    readme = _README.format(count=len(tasks), minutes=MINUTES, gold=gold if any(task.gold for task in tasks) else "")
    texts = {"Dockerfile": _DOCKERFILE, "requirements.txt": _REQUIREMENTS, "README.md": readme}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder

"""Forms by their names, or from files."""

from pathlib import Path

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import FORMS, Form, form_from_json


def load_form(name: str) -> Form:
    """Return the form of a name, or of a .json or .yaml file. Raises `InputError` for a wrong one."""
    import yaml

    if name in FORMS or not name.endswith((".json", ".yaml", ".yml")):
        return form_from_json(name)
    try:
        return form_from_json(yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8")), f"form in {name}")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"form={name} is invalid: it cannot be read ({reason}). Check the path.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"form={name} is invalid: it is no JSON or YAML ({reason}). Mend the file.") from error

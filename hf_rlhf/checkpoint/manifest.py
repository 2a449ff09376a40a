"""The manifest of a checkpoint: sizes and SHA-256 of its files, written with it and verified later."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
FORMAT = 1
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", "adapter_config.json")
_CHUNK = 1 << 20


class DamagedCheckpoint(Exception):
    """A folder that differs from the checkpoint that was written; the message names the file and the fault."""


def write_manifest(folder: Path, **facts: Any) -> None:
    """List every file below `folder`, with `facts` about the whole, and flush everything to the disk."""
    files = {}
    for file in _files(folder):
        flush(file)
        files[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": file_digest(file)}
    (folder / MANIFEST_FILE).write_text(_rendered({"format": FORMAT, **facts, "files": files}), encoding="utf-8")
    flush(folder / MANIFEST_FILE)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        flush(inner)
    flush(folder)


def verified_facts(folder: Path) -> dict[str, Any]:
    """Verify every file of a checkpoint and return the facts that `write_manifest` recorded.

    Files that a callback added later are ignored, unless they could be read as weights. Raises `DamagedCheckpoint` for
    a file that is missing or changed in any byte.
    """
    content = _content(folder)
    listed = content.pop("files")
    found = {file.relative_to(folder).as_posix() for file in _files(folder)}
    for name, expected in listed.items():
        if name not in found:
            raise DamagedCheckpoint(f"{name} is missing")
        size = (folder / name).stat().st_size
        if size != expected["size"]:
            raise DamagedCheckpoint(f"{name} has {size} bytes instead of {expected['size']}")
        if file_digest(folder / name) != expected["sha256"]:
            raise DamagedCheckpoint(f"the content of {name} has changed")
    if added := sorted(name for name in found - set(listed) if name.endswith(_WEIGHTS)):
        raise DamagedCheckpoint(f"{added[0]} does not belong to it")
    return content


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's created, renamed and removed entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise DamagedCheckpoint(f"there is no {MANIFEST_FILE}: it is incomplete, or another program wrote it")
    try:
        text = file.read_bytes().decode("utf-8")
        content = json.loads(text)
        own = content.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise DamagedCheckpoint(f"{MANIFEST_FILE} cannot be read ({type(error).__name__})") from error
    if content.get("format") != FORMAT:
        raise DamagedCheckpoint(
            f"{MANIFEST_FILE} is of format {content.get('format')!r}, and this version reads format {FORMAT}"
        )
    if own != _digest_of(content) or text != _rendered(content):
        raise DamagedCheckpoint(f"the content of {MANIFEST_FILE} has changed")
    return content


def _rendered(content: dict[str, Any]) -> str:
    return json.dumps({**content, "sha256": _digest_of(content)}, indent=1) + "\n"


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / MANIFEST_FILE)


def file_digest(file: Path) -> str:
    """Return the sha256 digest of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

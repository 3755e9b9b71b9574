"""Copies of artifacts with other metadata, for tests of refusals."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path


def with_metadata(source: Path, target: Path, **changes: str | None) -> Path:
    """Copy an artifact with some metadata replaced; None removes a key."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            content = old.read(item.filename)
            if item.filename.endswith("_metadata.json"):
                metadata = {**json.loads(content), **changes}
                content = json.dumps({key: value for key, value in metadata.items() if value is not None}).encode()
            new.writestr(item, content)
    return target

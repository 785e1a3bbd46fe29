"""Where packages come from: whether a list of packages decides by itself what is installed, or code that is not in it does.

Code of the app itself (``./libs/mylib``) and a branch of a repository may be another at the next build while the list is the
same; then what an earlier build installed says nothing.
"""

from __future__ import annotations

import re
from typing import Any

COMMIT = re.compile(r"@[0-9a-f]{40}(?![0-9a-z])")
INCLUDED = re.compile(r"(?:-r|--requirement|-c|--constraint)[\s=]*(\S+)")


def included_by(line: str) -> str | None:
    """The file that a line of a requirements file includes, as it is written there; None when it is elsewhere or includes none."""
    match = INCLUDED.match(line)
    return None if match is None or "://" in match[1] else match[1]


def lines_of(content: bytes) -> list[str]:
    """A requirements file's lines without comments."""
    return [re.sub(r"(^|\s)#.*$", "", line).strip() for line in content.decode(errors="replace").splitlines()]


def line_decides(line: str) -> bool:
    """Whether a line of a requirements file (PEP 508 and pip's options) decides by itself what is installed."""
    if not line:
        return True
    if included := INCLUDED.match(line):
        return "://" not in included[1]  # a file is read with the rest; what an address gives may be another at each build
    if re.match(r"-f\b|--find-links", line):
        return False
    if match := re.match(r"(?:-i|--index-url|--extra-index-url)[\s=]*(\S+)", line):
        return "://" in match[1] and not match[1].startswith("file:")
    if editable := re.match(r"(?:-e|--editable)[\s=]*(.+)", line):
        line = editable[1]
    elif line.startswith("-"):
        return True
    target = re.split(r"\s;|;\s|\s--|\s\\$", line)[0].strip()
    if named := re.match(r"[\w.-]+\s*(?:\[[^\]]*\])?\s*@\s*(.+)", target):
        target = named[1]
    return target_decides(target, in_list=named is None)


def target_decides(target: str, *, in_list: bool = False) -> bool:
    """The same of what is to be installed: a URL, a path or, in a list, a name with versions."""
    if re.match(r"(git|hg|svn|bzr)\+", target):
        return "://" in target and bool(COMMIT.search(target))
    if target.startswith("file:") or "://" not in target and not in_list:
        return False
    return "://" in target or not (target[:1] in "./" or "/" in target or re.search(r"\.(whl|zip|tar\.gz|tgz|tar\.bz2)(\[|$)", target))


def pyproject_decides(document: dict[str, Any]) -> bool:
    """The same of pyproject.toml's own dependencies, which uv reads with the sources of [tool.uv]."""
    project, uv = document.get("project", {}), document.get("tool", {}).get("uv", {})
    if any(name in ("dependencies", "optional-dependencies") for name in project.get("dynamic", [])):
        return False  # they are in a file that only the build backend knows
    for source in uv.get("sources", {}).values():
        for entry in source if isinstance(source, list) else [source]:
            if "path" in entry or "workspace" in entry or ("git" in entry and not re.fullmatch(r"[0-9a-f]{40}", str(entry.get("rev", "")))):
                return False
    return settings_decide(uv) and all(line_decides(str(line)) for line in project.get("dependencies", []))


def settings_decide(uv: dict[str, Any]) -> bool:
    """The same of uv's settings ([tool.uv], uv.toml): folders of wheels have no say."""
    indexes = [str(entry.get("url", "")) for entry in uv.get("index", []) if isinstance(entry, dict)]
    indexes += [str(uv.get("index-url", "://"))] + [str(url) for url in uv.get("extra-index-url", [])]
    folders = [uv.get("find-links"), uv.get("pip", {}).get("find-links")]
    return not any(folders) and all("://" in url and not url.startswith("file:") for url in indexes)


def uv_lock_decides(lock: dict[str, Any]) -> bool:
    """The same of uv.lock."""
    sources = [package.get("source", {}) for package in lock.get("package", [])]
    return not any(key in source for source in sources for key in ("editable", "directory", "path"))


def poetry_lock_decides(lock: dict[str, Any]) -> bool:
    """The same of poetry.lock."""
    for package in lock.get("package", []):
        source = package.get("source", {})
        if source.get("type") in ("directory", "file") or (source.get("type") == "url" and "://" not in str(source.get("url"))):
            return False
    return True


def pipfile_lock_decides(lock: dict[str, Any]) -> bool:
    """The same of Pipfile.lock."""
    for entry in lock.get("default", {}).values():
        if "path" in entry or ("file" in entry and not target_decides(str(entry["file"]))):
            return False
        if "git" in entry and not re.fullmatch(r"[0-9a-f]{40}", str(entry.get("ref", ""))):
            return False
    return True

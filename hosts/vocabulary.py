"""Which words a ``#cloud-config`` of ours may have. cloud-init's own schema lets unknown keys of the top level pass, so a
typing error there would silently do nothing. Pure.

Source: cloud-init's module reference (the keys that this project writes or that its users add to what it writes).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from foundation.errors import InvalidParams

_KINDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
TOP: Mapping[str, Any] = {
    "apt": dict,
    "bootcmd": list,
    "ca_certs": dict,
    "disable_root": bool,
    "disk_setup": dict,
    "final_message": str,
    "fqdn": str,
    "fs_setup": list,
    "growpart": dict,
    "hostname": str,
    "keyboard": dict,
    "locale": (str, bool),
    "manage_etc_hosts": (bool, str),
    "mounts": list,
    "ntp": dict,
    "output": dict,
    "package_reboot_if_required": bool,
    "package_update": bool,
    "package_upgrade": bool,
    "packages": list,
    "phone_home": dict,
    "power_state": dict,
    "preserve_hostname": bool,
    "resize_rootfs": (bool, str),
    "runcmd": list,
    "ssh_authorized_keys": list,
    "ssh_deletekeys": bool,
    "ssh_genkeytypes": list,
    "ssh_keys": dict,
    "ssh_pwauth": (bool, str),
    "swap": dict,
    "timezone": str,
    "users": list,
    "write_files": list,
}
_BELOW: Mapping[str, frozenset[str]] = {
    "users": frozenset(
        "name expiredate gecos groups homedir inactive lock_passwd no_create_home no_log_init no_user_group passwd hashed_passwd "
        "primary_group selinux_user shell ssh_authorized_keys ssh_import_id ssh_redirect_user sudo system uid".split()
    ),
    "write_files": frozenset("path content source owner permissions encoding append defer".split()),
    "swap": frozenset("filename size maxsize".split()),
    "ca_certs": frozenset("remove_defaults trusted".split()),
    "output": frozenset("all init config final".split()),
}
_NEEDED: Mapping[str, frozenset[str]] = {"write_files": frozenset({"path"}), "users": frozenset({"name"})}


def check(document: object) -> None:
    """See that a document says only what cloud-init understands.

    Raises:
        InvalidParams: an unknown key, or a value of the wrong type; the sentence names it, and what was probably meant.
    """
    if not isinstance(document, dict):
        raise InvalidParams("User-data must be a mapping of cloud-init's keys to their values.")
    for key, value in document.items():
        if key not in TOP:
            raise InvalidParams(f"cloud-init knows no key “{key}”{_guess(str(key), TOP)}")
        kinds = TOP[key] if isinstance(TOP[key], tuple) else (TOP[key],)
        if type(value) not in kinds:
            names = " or ".join(_KINDS[kind] for kind in kinds)
            raise InvalidParams(f"The value of “{key}” must be {names}, not {value!r}.")
        _check_below(key, value)


def _check_below(key: str, value: Any) -> None:
    known = _BELOW.get(key)
    if known is None:
        return
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict):
            if key == "users" and isinstance(entry, str):
                continue
            raise InvalidParams(f"Each entry of “{key}” must be a mapping, not {type(entry).__name__}.")
        for name in entry:
            if name not in known:
                raise InvalidParams(f"cloud-init knows no “{name}” in “{key}”{_guess(str(name), known)}")
        for name in _NEEDED.get(key, frozenset()) - entry.keys():
            raise InvalidParams(f"An entry of “{key}” has no “{name}”.")


def _guess(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean “{close[0]}”?" if close else "."

"""Which words a ``#cloud-config`` of ours may have. cloud-init's own schema lets unknown keys of the top level pass, so a
typing error there would silently do nothing. Pure.

Source: cloud-init's module reference and its schema, of 22.4 (Debian 12) to 26.2; what is deprecated is known, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from foundation.errors import InvalidParams

_KINDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", type(None): "nothing"}
_NONE = type(None)
TOP: Mapping[str, Any] = {
    "allow_public_ssh_keys": bool,
    "ansible": dict,
    "apk_repos": dict,
    "apt": dict,
    "apt_pipelining": (bool, int, str),
    "apt_reboot_if_required": bool,
    "apt_update": bool,
    "apt_upgrade": bool,
    "authkey_hash": str,
    "autoinstall": dict,
    "bootcmd": list,
    "byobu_by_default": str,
    "ca-certs": dict,
    "ca_certs": dict,
    "chef": dict,
    "chpasswd": dict,
    "cloud_config_modules": list,
    "cloud_final_modules": list,
    "cloud_init_modules": list,
    "create_hostname_file": bool,
    "datasource": dict,
    "datasource_list": list,
    "device_aliases": dict,
    "disable_ec2_metadata": bool,
    "disable_piwiz": bool,
    "disable_root": bool,
    "disable_root_opts": str,
    "disk_setup": dict,
    "drivers": dict,
    "enable_rpi_connect": bool,
    "fan": dict,
    "final_message": str,
    "fqdn": str,
    "fs_setup": list,
    "groups": (str, list, dict),
    "growpart": dict,
    "grub-dpkg": dict,
    "grub_dpkg": dict,
    "hostname": str,
    "keyboard": dict,
    "landscape": dict,
    "launch-index": int,
    "locale": (str, bool),
    "locale_configfile": str,
    "lxd": dict,
    "manage_etc_hosts": (bool, str),
    "manage_resolv_conf": bool,
    "mcollective": dict,
    "merge_how": (str, list, dict),
    "merge_type": (str, list, dict),
    "migrate": bool,
    "mount_default_fields": list,
    "mounts": list,
    "no_ssh_fingerprints": bool,
    "ntp": (dict, _NONE),
    "output": dict,
    "package_reboot_if_required": bool,
    "package_update": bool,
    "package_upgrade": bool,
    "packages": list,
    "password": str,
    "phone_home": dict,
    "power_state": dict,
    "prefer_fqdn_over_hostname": bool,
    "preserve_hostname": bool,
    "puppet": dict,
    "random_seed": dict,
    "reporting": dict,
    "resize_rootfs": (bool, str),
    "resolv_conf": dict,
    "rh_subscription": dict,
    "rpi": dict,
    "rpi_interfaces": dict,
    "rpi_userconf": dict,
    "rsyslog": dict,
    "runcmd": list,
    "salt_minion": dict,
    "snap": dict,
    "spacewalk": dict,
    "ssh": dict,
    "ssh_authorized_keys": list,
    "ssh_deletekeys": bool,
    "ssh_fp_console_blacklist": list,
    "ssh_genkeytypes": list,
    "ssh_import_id": list,
    "ssh_key_console_blacklist": list,
    "ssh_keys": dict,
    "ssh_publish_hostkeys": dict,
    "ssh_pwauth": (bool, str),
    "ssh_quiet_keygen": bool,
    "swap": dict,
    "system_info": dict,
    "timezone": str,
    "ubuntu_advantage": dict,
    "ubuntu_pro": dict,
    "updates": dict,
    "user": (str, dict),
    "users": (list, str, dict),
    "vendor_data": dict,
    "version": (str, int),
    "wireguard": (dict, _NONE),
    "write_files": list,
    "yum_repo_dir": str,
    "yum_repos": dict,
    "zypper": dict,
}
_CERTIFICATES = frozenset("remove_defaults remove-defaults trusted".split())
_USER = frozenset(
    "name create_groups doas expiredate gecos groups hashed_passwd homedir inactive lock_passwd no_create_home no_log_init "
    "no_user_group passwd plain_text_passwd primary_group selinux_user shell snapuser ssh_authorized_keys ssh_import_id "
    "ssh_redirect_user sudo system uid".split()
)
_BELOW: Mapping[str, frozenset[str]] = {
    "users": _USER | {name.replace("_", "-") for name in _USER},  # all of them also with dashes, says its schema from 24.2 on
    "write_files": frozenset("path content source owner permissions encoding append defer".split()),
    "swap": frozenset("filename size maxsize".split()),
    "ca_certs": _CERTIFICATES,
    "ca-certs": _CERTIFICATES,
    "chpasswd": frozenset("expire users list".split()),
    "output": frozenset("all init config final".split()),
}
_NEEDED: Mapping[str, str] = {"write_files": "path", "users": "name"}


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
            raise InvalidParams(f"The value of “{key}” must be {names}, not {_kind(value)}.")
        _check_below(key, value)


def _check_below(key: str, value: Any) -> None:
    known = _BELOW.get(key)
    if known is None or (key == "users" and not isinstance(value, list)):  # names, or the old form: names and what they are
        return
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict):
            if key == "users" and isinstance(entry, str | list):
                continue
            raise InvalidParams(f"Each entry of “{key}” must be a mapping, not {_kind(entry)}.")
        for name in entry:
            if name not in known:
                raise InvalidParams(f"cloud-init knows no “{name}” in “{key}”{_guess(str(name), known)}")
        if (name := _NEEDED.get(key, "")) not in ("", *entry) and "snapuser" not in entry:
            raise InvalidParams(f"An entry of “{key}” has no “{name}”.")


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _guess(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean “{close[0]}”?" if close else "."

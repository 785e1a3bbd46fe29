"""The NoCloud seed: a small disk, labelled ``cidata``, from which cloud-init takes what it would ask a cloud for.

Source: cloud-init's NoCloud datasource; ISO 9660 with Rock Ridge and Joliet, so that the files keep their names.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import yaml

from foundation.errors import DavitError


class SeedFailed(DavitError):
    """The seed disk could not be written."""

    id, status = "seed_failed", 500


def meta_data(instance: str, hostname: str | None) -> str:
    """The meta-data: who the instance is. Another ``instance`` makes cloud-init begin anew."""
    values = {"instance-id": instance, **({"local-hostname": hostname} if hostname else {})}
    return yaml.safe_dump(values, sort_keys=False)


def write(target: Path, user_data: str, meta: str, network: str | None = None) -> None:
    """Write the disk, by rename, readable by its owner alone.

    Args:
        network: a network configuration (version 2) of the machine; DHCP when None.

    Raises:
        SeedFailed: it cannot be written there.
    """
    from pycdlib import PyCdlib

    disk = PyCdlib()
    disk.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    files = {"user-data": user_data, "meta-data": meta, **({"network-config": network} if network else {})}
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        disk.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    fresh = target.with_name(f".{target.name}.new")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            disk.write_fp(file)
        fresh.rename(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise SeedFailed(f"The seed disk cannot be written to {target}: {error.strerror}.") from error
    finally:
        disk.close()

"""What docker-compose.yml passes on to the services; that no setting is left out, tests/test_layout.py sees."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from foundation.settings import Settings

COMPOSITION: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
PROXIES = {name for upper in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY") for name in (upper, upper.lower())}


def test_proxies_and_certificates_are_passed_on_to_every_service() -> None:
    for name, service in COMPOSITION["services"].items():
        assert service["environment"].keys() >= PROXIES | {"SSL_CERT_FILE"}
        assert any("SSL_CERT_FILE" in volume for volume in service["volumes"]), f"{name} cannot read the host's certificates"


def test_a_setting_that_is_not_set_has_the_default_that_the_settings_page_names() -> None:
    defaults = {field.metadata["variable"]: field.metadata["default"] for field in fields(Settings)}
    for name, value in COMPOSITION["x-davit"]["environment"].items():
        if value is not None and name != "DAVIT_HOME":
            assert value == f"${{{name}:-{defaults[name]}}}"
    assert COMPOSITION["x-davit"]["environment"]["DAVIT_HOME"] == defaults["DAVIT_HOME"]


def test_what_a_command_line_reads_of_the_environment_is_always_set() -> None:
    for service in COMPOSITION["services"].values():
        for name in re.findall(r"\$\$(\w+)", service["command"]):
            assert service["environment"][name] is not None or f'-n "$${name}"' in service["command"]


def test_an_image_is_built_through_the_proxy() -> None:
    assert set(COMPOSITION["x-davit"]["build"]["args"]) == PROXIES

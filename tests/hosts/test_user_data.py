"""User-data, seed disks and units, without a machine: composed, checked by our own eyes and by cloud-init's schema, read back."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli.host import install
from cli.main import cli
from foundation.errors import InvalidParams
from foundation.settings import from_environment
from hosts import cloudconfig, plan, seed, units, vocabulary
from hosts.plan import Download, Host
from tests.e2e.errors_page import assert_says

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq00000000000000000000000000000000000000000 ann@laptop"
HOST = Host("apps.example.com", (KEY,), git="https://code.example.com/davit.git", ref="v1.0")
SUM = "ab" * 32
CERTIFICATE = "".join(Path("/etc/ssl/certs/ca-certificates.crt").read_text().partition("-----END CERTIFICATE-----\n")[:2])
EVERYTHING = replace(
    HOST, git=None, release=Download("https://example.com/davit.tar", SUM), stack=Download("https://example.com/stack.tar", SUM),
    hostname="davit-1", settings={"DAVIT_PUSH_LIMIT": "2048"}, certificates=(CERTIFICATE,), mirror="http://mirror.example.com/debian",
)  # fmt: skip


def document(host: Host) -> dict[str, Any]:
    text = cloudconfig.user_data(host)
    assert text.startswith("#cloud-config\n")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def files(host: Host) -> dict[str, str]:
    return {file["path"]: file["content"] for file in document(host)["write_files"]}


@pytest.mark.parametrize("host", [HOST, EVERYTHING], ids=["least", "everything"])
def test_cloud_inits_own_schema_accepts_it(host: Host, tmp_path: Path) -> None:
    program = shutil.which("cloud-init")
    assert program, "the package cloud-init is missing: scripts/setup run test"
    (tmp_path / "user-data").write_text(cloudconfig.user_data(host))
    done = subprocess.run([program, "schema", "--config-file", tmp_path / "user-data"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_the_consoles_last_line_and_the_newest_cloud_init_whose_keys_are_known() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs/hosts.md").read_text().split())
    said, command = document(HOST)["final_message"].replace("$UPTIME", "…").split("; ")
    assert f"`{said}`" in page and command.split("`")[1] in page
    newest = (vocabulary.__doc__ or "").partition("(Debian 12) to ")[2].partition(";")[0]
    assert newest and f"the keys of cloud-init from 22.4 to {newest}." in page


def test_it_is_the_same_every_time() -> None:
    assert cloudconfig.user_data(EVERYTHING) == cloudconfig.user_data(EVERYTHING)


@pytest.mark.parametrize("host", [HOST, EVERYTHING], ids=["least", "everything"])
def test_the_script_is_one_that_a_shell_understands(host: Host, tmp_path: Path) -> None:
    script = files(host)[cloudconfig.SETUP]
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    assert ("git clone" in script) == (host.git is not None)
    assert ("stack.tar" in script) == (host.stack is not None)
    assert ("for program in git;" in script) == (host.git is not None)


def test_all_that_set_up_needs_is_installed_by_set_up_alone() -> None:
    """One transaction of apt's, which keeps the services of packages down; cloud-init's own would start them."""
    assert not {"packages", "package_update", "package_upgrade"} & document(EVERYTHING).keys()
    assert "scripts/setup run host" in files(EVERYTHING)[cloudconfig.SETUP]


@pytest.mark.parametrize(("mirror", "security"), [
    ("http://mirror.example.com/debian", "http://mirror.example.com/debian-security"),
    ("http://mirror.example.com/debian/", "http://mirror.example.com/debian-security"),
    ("http://mirror.example.com/ubuntu/", "http://mirror.example.com/ubuntu/"),
])  # fmt: skip
def test_a_mirror_replaces_what_the_image_has(mirror: str, security: str) -> None:
    assert document(replace(EVERYTHING, mirror=mirror))["apt"] == {
        "preserve_sources_list": False, "primary": [{"arches": ["default"], "uri": mirror}],
        "security": [{"arches": ["default"], "uri": security}],
    }  # fmt: skip


def test_a_stack_that_cannot_be_fetched_ends_the_set_up(tmp_path: Path) -> None:
    """It is fetched beside the rest; what fails there must not be lost."""
    script = files(EVERYTHING)[cloudconfig.SETUP]
    beside = (
        script[script.index("take_stack() {") : script.index('say "installing what')]
        + script[script.index('wait "$stack"') : script.index("trap - EXIT")]
    )
    for status in (0, 1):
        stand_ins = (
            f"set -eu\nsay() {{ :; }}\nfetch() {{ touch {tmp_path}/asked; return {status}; }}\ntar() {{ :; }}\nmkdir() {{ :; }}\n"
        )
        done = subprocess.run(
            ["sh", "-c", stand_ins + beside.replace(plan.STACKS, str(tmp_path / "none")) + "echo on"],
            capture_output=True,
            text=True,
        )
        assert ("on" in done.stdout, (tmp_path / "asked").exists()) == (status == 0, True), done.stderr


def test_what_it_fetches_is_used_only_when_its_checksum_is_right(tmp_path: Path) -> None:
    script = files(EVERYTHING)[cloudconfig.SETUP]
    fetch = script[script.index("fetch() {") : script.index("\n}\n") + 3]
    (tmp_path / "file").write_text("not what was promised")
    good = subprocess.run(["sha256sum", tmp_path / "file"], capture_output=True, text=True, check=True).stdout[:64]
    for digest, status in ((SUM, 1), (good, 0)):
        call = f'set -eu\nsay() {{ echo "$@"; }}\n{fetch}\nfetch file://{tmp_path}/file {digest} {tmp_path}/got'
        done = subprocess.run(["sh", "-c", call], capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        assert (tmp_path / "got").exists() == (status == 0)


def test_settings_arrive_as_they_were_written(tmp_path: Path) -> None:
    value = r'a "b" \c $d'
    (tmp_path / "env").write_text(cloudconfig.environment(replace(HOST, settings={"DAVIT_MIRROR": value})))
    read = install.read_environment(tmp_path / "env")
    assert (read["DAVIT_MIRROR"], read["DAVIT_DOMAIN"], read["DAVIT_HTTP"]) == (value, "apps.example.com", "0.0.0.0:80")


def test_the_firewall_is_one_that_nft_accepts(tmp_path: Path) -> None:
    (tmp_path / "firewall.nft").write_text(files(HOST)["/etc/davit/firewall.nft"])
    check = ["unshare", "--net", "nft", "--check", "-f", tmp_path / "firewall.nft"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.row("user-data-secret")
def test_no_secret_is_in_it_unless_asked_for() -> None:
    told = replace(HOST, settings={"DATABASE_URL": "postgresql://davit:s3cret@db/davit"})
    with pytest.raises(InvalidParams, match="DATABASE_URL may hold a password") as refused:
        cloudconfig.user_data(told)
    assert_says("user-data-secret", refused.value.message)
    assert "s3cret" in cloudconfig.user_data(replace(told, secrets=True))


@pytest.mark.row("user-data-secret")
@pytest.mark.parametrize("change", [
    {"git": "https://ann:s3cret@code.example.com/davit.git"},
    {"git": "https://s3cret@code.example.com/davit.git"},
    {"git": "https://code.example.com/davit.git?private_token=s3cret"},
    {"git": None, "release": Download("https://example.com/davit.tar?a=1&token=s3cret", SUM)},
    {"stack": Download("https://bucket.example.com/stack.tar?X-Amz-Signature=s3cret", SUM)},
    {"stack": Download("https://example.com/stack.tar?s3cret", SUM)},
    {"stack": Download("https://example.com/stack.tar?version=3&s3cret", SUM)},
    *({"stack": Download(f"https://example.com/stack.tar?{name}=s3cret", SUM)} for name in (
        "pass", "db_pass", "pw", "pwd", "code", "hmac", "api-key", "AccessKey", "Authorization", "oauth", "sig",
    )),
    {"git": "ssh://git:s3cret@code.example.com/davit.git"},
    {"git": None, "release": Download("https://ann:s3cret@example.com/davit.tar", SUM)},
    {"stack": Download("https://ann:s3cret@example.com/stack.tar", SUM)},
    {"mirror": "http://ann:s3cret@mirror.example.com/debian"},
    {"settings": {"DAVIT_MIRROR": "http://ann:s3cret@mirror.example.com/debian"}},
], ids=str)  # fmt: skip
def test_no_address_with_a_password_is_in_it_unless_asked_for(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidParams, match="holds a password or token") as refused:
        cloudconfig.user_data(replace(HOST, **change))
    assert_says("user-data-secret", refused.value.message)
    assert "s3cret" not in refused.value.message
    allowed = cloudconfig.user_data(replace(HOST, **change, secrets=True))
    assert "s3cret" in allowed


def test_what_may_hold_a_secret_is_roots_alone_on_the_host() -> None:
    modes = {file["path"]: file.get("permissions", "0644") for file in document(HOST)["write_files"]}
    assert (modes[cloudconfig.SETUP], modes[cloudconfig.ENVIRONMENT]) == ("0700", "0600")


def test_a_stack_is_fetched_to_where_davit_looks_for_it() -> None:
    moved = replace(EVERYTHING, settings={"DAVIT_STACKS": "/srv/my stacks"})
    script = files(moved)[cloudconfig.SETUP]
    assert plan.STACKS not in script and "export HOME=/root" in script and " DAVIT_STACKS='/srv/my stacks'\n" in script
    assert "tar -xf /var/cache/davit/stack.tar -C '/srv/my stacks' --no-same-owner" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0


def test_stacks_are_where_they_are_by_default_when_the_setting_is_empty() -> None:
    emptied = replace(EVERYTHING, settings={"DAVIT_STACKS": ""})
    assert files(emptied)[cloudconfig.SETUP] == files(EVERYTHING)[cloudconfig.SETUP]
    assert f'DAVIT_STACKS="{plan.STACKS}"\n' in files(emptied)[cloudconfig.ENVIRONMENT]


def test_a_parameter_that_is_no_secret_is_none() -> None:
    address = "https://example.com/stack.tar?version=3&download=1&author=ann&keyword=a&bypass=1&country_code=de&token="
    assert address in cloudconfig.user_data(replace(HOST, stack=Download(address, SUM)))


def test_a_name_that_is_no_secret_is_none() -> None:
    assert "ssh://git@code.example.com" in cloudconfig.user_data(replace(HOST, git="ssh://git@code.example.com/davit.git"))


def test_the_firewall_lets_in_where_davit_listens() -> None:
    assert cloudconfig.ports(HOST) == [22, 80, 443, 2222, 5000]
    moved = {"DAVIT_SSH": "0.0.0.0:22222", "DAVIT_API": "[::]:8443", "DAVIT_HTTP": "127.0.0.1:8080", "DAVIT_EXEC": "127.0.0.2:80"}
    assert cloudconfig.ports(replace(HOST, settings=moved)) == [22, 443, 8443, 22222]
    assert "tcp dport { 22, 443, 8443, 22222 } accept" in files(replace(HOST, settings=moved))["/etc/davit/firewall.nft"]


def test_the_firewall_waits_for_nothing_that_waits_for_the_network() -> None:
    """As most units do by themselves: cloud-init's wait for the network, and the others for cloud-init's."""
    unit = files(HOST)["/etc/systemd/system/davit-firewall.service"]
    assert "DefaultDependencies=no\n" in unit and "\nAfter=" not in unit and "Before=network-pre.target" in unit


def test_a_host_whose_kernel_is_too_old_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    """Also where the stack, whose building would tell, comes from elsewhere; an image is not built where it runs."""
    setup = (Path(__file__).parents[2] / "scripts/setup").read_text()
    stand_ins = (
        "uname() { echo 5.15.0-100-generic; }\npackages() { echo installing; }\npython_environment() { :; }\nalone() { :; }\n"
    )
    (tmp_path / "setup").write_text(setup.replace('\nmain "$@"', f'\n{stand_ins}main "$@"'))
    env = {"PATH": "/usr/bin:/bin", "DAVIT_CACHE": str(tmp_path / "cache"), "SETUP_STACK": "no"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", tmp_path / "setup", *words], env=env, capture_output=True, text=True)

    host = run("run", "host")
    assert host.returncode == 1 and "Linux 5.15.0-100-generic is older than 5.19" in host.stderr and host.stdout == ""
    assert (run("run").returncode, run("run").stdout) == (0, "installing\n")


WRONG = {
    "a domain that is none": ({"domain": "http://x"}, "The domain “http://x” is no host name"),
    "a key that is none": ({"admin_keys": ("rm -rf /",)}, "is no SSH public key"),
    "a private key": ({"admin_keys": ("-----BEGIN OPENSSH PRIVATE KEY-----",)}, "is no SSH public key"),
    "no source": ({"git": None}, "Say where Davit comes from"),
    "two sources": ({"release": Download("https://x/y", SUM)}, "Say where Davit comes from"),
    "no checksum": ({"git": None, "release": Download("https://x/y", "")}, "checksum must be its SHA-256"),
    "a shell in the address": ({"git": None, "release": Download("https://x/'; reboot", SUM)}, "is no HTTP address"),
    "a shell in the version": ({"ref": "$(reboot)"}, "is no branch, tag or commit"),
    "an option as the version": ({"ref": "--upload-pack=x"}, "is no branch, tag or commit"),
    "a repository as scp names it": ({"git": "git@code.example.com:davit.git"}, "is no repository's address"),
    "an address as the domain": ({"domain": "10.0.0.1"}, "is no host name but an address"),
    "a domain set twice": ({"settings": {"DAVIT_DOMAIN": "other.example.com"}}, "The domain is set twice"),
    "half a key": ({"admin_keys": (KEY[:60],)}, "a part of it is missing"),
    "a key of another kind": ({"admin_keys": (KEY.replace("ssh-ed25519", "ssh-rsa"),)}, "a part of it is missing"),
    "too much swap": ({"swap": 1 << 20}, "must be between 0 and 65536"),
    "an unknown setting": ({"settings": {"PATH": "/tmp"}}, "PATH is no setting of Davit's"),
    "a setting that there is not": ({"settings": {"DAVIT_BUILDSLOTS": "2"}}, "is no setting of Davit's; did you mean DAVIT_BUILD_SLOTS?"),
    "a setting's value": ({"settings": {"DAVIT_BUILD_SLOTS": "many"}}, "DAVIT_BUILD_SLOTS is “many”; it must be a whole number"),
    "a port that is taken": ({"settings": {"DAVIT_SSH": "0.0.0.0:22"}}, "DAVIT_SSH is “0.0.0.0:22”; it must be another port than 22"),
    "stacks that make Davit's home root's": ({"settings": {"DAVIT_STACKS": "/var/lib/davit/stacks"}}, "it must be outside of"),
    "a setting's list": ({"settings": {"DAVIT_NAMES": "http://x"}}, "DAVIT_NAMES has “http://x”; it must be host names"),
    "a setting of two lines": ({"settings": {"DAVIT_MIRROR": "a\nDAVIT_HOME=/x"}}, "has control characters"),
    "a certificate that is none": ({"certificates": ("hello",)}, "must be PEM text"),
    "half a certificate": ({"certificates": (CERTIFICATE[:300] + "\n-----END CERTIFICATE-----\n",)}, "must be PEM text"),
}  # fmt: skip


@pytest.mark.row("user-data-option")
@pytest.mark.parametrize(("change", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidParams, match=r".") as error:
        cloudconfig.user_data(replace(HOST, **change))
    assert sentence in error.value.message
    assert_says("user-data-option", error.value.message)


UNSOUND = {
    "runcmdd: [ls]": "knows no key “runcmdd”; did you mean “runcmd”?",
    "chpaswd: {expire: false}": "knows no key “chpaswd”; did you mean “chpasswd”?",
    "packages: curl": "The value of “packages” must be a list, not text.",
    "package_update: 1": "must be true or false",
    "write_files: [{content: x}]": "An entry of “write_files” has no “path”",
    "write_files: [{path: /x, mode: 1}]": "knows no “mode” in “write_files”",
    "users: [{name: ann, ssh-keys: []}]": "knows no “ssh-keys” in “users”",
    "output: {al: /var/log/x}": "knows no “al” in “output”; did you mean “all”?",
    "hostname: 5": "The value of “hostname” must be text, not a number.",
    "runcmd:": "The value of “runcmd” must be a list, not nothing.",
    "runcmd: [a]\nruncmd: [b]": "User-data is no YAML (line 3: “runcmd” is there twice)",
    "write_files: [{path: /a, content: x, path: /b}]": "User-data is no YAML (line 2: “path” is there twice)",
    "- a": "must be a mapping",
    "a: [": "User-data is no YAML",
    "hostname: 2020-13-45": "User-data is no YAML (line 2: “2020-13-45” cannot be read as timestamp)",
    "packages: [!!bool x]": "User-data is no YAML (line 2: “x” cannot be read as bool)",
}


@pytest.mark.row("user-data-key", "user-data-type", "user-data-none")
@pytest.mark.parametrize(("text", "sentence"), UNSOUND.items(), ids=UNSOUND)
def test_unknown_keys_and_wrong_types_are_told(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text(f"#cloud-config\n{text}\n")
    for words in (
        ["host:check", str(tmp_path / "user-data")],
        ["host:seed", str(tmp_path / "iso"), "--user-data", str(tmp_path / "user-data")],
    ):
        done = CliRunner().invoke(cli, words)
        assert isinstance(done.exception, InvalidParams) and sentence in done.exception.message, done.output
        row = "key" if "knows no " in sentence else "none" if sentence.startswith("User-data is no") else "type"
        assert_says(f"user-data-{row}", done.exception.message)
    assert not (tmp_path / "iso").exists()


@pytest.mark.parametrize("content", [b"#cloud-config\nhostname: \xff\n", b"hostname: x\n", b"#cloud-config\na: " + b"[" * 5000])
def test_a_file_that_is_no_user_data_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "user-data").write_bytes(content)
    for words in (["host:check"], ["host:seed", str(tmp_path / "iso"), "--user-data"]):
        done = CliRunner().invoke(cli, [*words, str(tmp_path / "user-data")])
        assert isinstance(done.exception, InvalidParams), done.exception
        assert_says("user-data-none", done.exception.message)


OPTIONS = {
    "a checksum of nothing": (["--sha256", SUM], "--sha256 is there without --archive"),
    "a stack's checksum of nothing": (["--stack-sha256", SUM], "--stack-sha256 is there without --stack"),
    "no key and no file": (["--admin-key", "id.pub"], "--admin-key “id.pub” is no SSH public key and no file."),
    "a directory as the key": (["--admin-key", "/tmp"], "is no SSH public key and no file."),
    "a program as the key": (["--admin-key", "program"], "The SSH public key program is no text in UTF-8."),
    "a private key": (["--admin-key", "private"], "A private key is no SSH public key"),
    "an empty file as the key": (["--admin-key", "empty"], "is no SSH public key but an empty file."),
    "a program as the certificate": (["--ca", "program"], "The certificate program is no text in UTF-8."),
}


@pytest.mark.row("user-data-option", "user-data-none")
@pytest.mark.parametrize(("words", "sentence"), OPTIONS.values(), ids=OPTIONS)
def test_an_option_that_is_none_is_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program").write_bytes(b"\x7fELF\xff\xfe")
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n")
    (tmp_path / "empty").touch()
    done = CliRunner().invoke(cli, ["host:user-data", "--domain", "x.example.com", "--git", "https://x/y.git", *words])
    assert isinstance(done.exception, InvalidParams) and sentence in done.exception.message, done.exception
    assert "b3Bl" not in done.exception.message
    assert_says("user-data-none" if "UTF-8" in sentence else "user-data-option", done.exception.message)


def test_a_version_without_a_repository_is_told() -> None:
    words = ["--domain", "x.example.com", "--archive", "https://x/y", "--sha256", SUM, "--version", "v1"]
    done = CliRunner().invoke(cli, ["host:user-data", *words])
    assert isinstance(done.exception, InvalidParams) and "--version is there without --git" in done.exception.message


def test_a_file_may_have_several_keys_and_a_certificates_file_more_than_those(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# Ann's\n{KEY}\n\n{KEY} too\n")
    (tmp_path / "pem").write_text(f"-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n{CERTIFICATE}\n{CERTIFICATE}")
    words = [
        "--domain",
        "Apps.Example.COM",
        "--git",
        "https://x/y.git",
        "--admin-key",
        tmp_path / "keys",
        "--ca",
        tmp_path / "pem",
    ]
    done = CliRunner().invoke(cli, ["host:user-data", *map(str, words)])
    read = yaml.safe_load(done.stdout)
    assert read["users"][1]["ssh_authorized_keys"] == [KEY, f"{KEY} too"]
    assert [text.strip() for text in read["ca_certs"]["trusted"]] == [CERTIFICATE.strip()] * 2
    assert "s3cret" not in done.stdout and 'DAVIT_DOMAIN="apps.example.com"' in done.stdout


NETWORKS = {
    "ethernets: {}": "The network configuration must be a mapping",
    "version: two": "The network configuration must be a mapping",
    "version: [": "The network configuration is no YAML",
}


@pytest.mark.row("user-data-type", "user-data-none")
@pytest.mark.parametrize(("text", "sentence"), NETWORKS.items(), ids=NETWORKS)
def test_a_network_that_is_none_is_told(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "network").write_text(text)
    words = [tmp_path / "iso", "--domain", "x.example.com", "--git", "https://x/y.git", "--network", tmp_path / "network"]
    done = CliRunner().invoke(cli, ["host:seed", *map(str, words)])
    assert isinstance(done.exception, InvalidParams) and sentence in done.exception.message
    assert_says("user-data-none" if "YAML" in sentence else "user-data-type", done.exception.message)
    assert not (tmp_path / "iso").exists()


@pytest.mark.row("user-data-option")
def test_ones_own_user_data_takes_no_options_and_a_seed_without_a_key_says_so(tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\nhostname: a\n")
    words = ["host:seed", str(tmp_path / "iso"), "--user-data", str(tmp_path / "user-data")]
    done = CliRunner().invoke(cli, [*words, "--domain", "x.example.com"])
    assert isinstance(done.exception, InvalidParams) and "--domain would not be in it" in done.exception.message
    assert_says("user-data-option", done.exception.message)
    assert CliRunner().invoke(cli, [*words, "--hostname", "a"]).stderr == ""
    done = CliRunner().invoke(cli, [*words[:2], "--domain", "x.example.com", "--git", "https://x/y.git"])
    assert done.exit_code == 0 and "nobody will be able to log in" in done.stderr


def test_what_was_not_asked_for_its_schema_is_not_called_sound_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\nssh_genkeytypes: [42]\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(cli, ["host:check", str(tmp_path / "user-data")])
    assert done.exit_code == 0 and "cloud-init is not installed, so its schema was not asked" in done.output


def unknown(schema: dict[str, Any]) -> set[str]:
    """The keys of cloud-init's schema that our own check would refuse."""
    parts = [schema["$defs"][part["$ref"].rpartition("/")[2]] for part in schema["allOf"]]
    keys = {key for part in [schema, *parts] for key in part.get("properties", ())}
    assert {"runcmd", "chpasswd", "ssh_import_id"} <= keys, "the schema is read otherwise now"
    return (keys - vocabulary.TOP.keys()) | (set(schema["$defs"]["users_groups.user"]["properties"]) - vocabulary._BELOW["users"])


def test_every_key_that_cloud_init_knows_is_known() -> None:
    """Its own schema, which the package has installed for the host's Python."""
    program = shutil.which("cloud-init")
    assert program, "the package cloud-init is missing: scripts/setup run test"
    where = "import cloudinit.config, pathlib; print(pathlib.Path(cloudinit.config.__file__).with_name('schemas'))"
    told = subprocess.run(["/usr/bin/python3", "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    schema = json.loads((Path(told) / "schema-cloud-config-v1.json").read_text())
    assert unknown(schema) == set()


def test_what_newer_cloud_inits_know_is_known() -> None:
    """From the schemas of 24.2 (a user's words with dashes) and 25.2 (rpi), which the installed one may be older than."""
    words = "create-groups hashed-passwd lock-passwd no-create-home no-log-init no-user-group plain-text-passwd primary-group"
    more = "selinux-user ssh-authorized-keys ssh-import-id ssh-redirect-user"
    user = {"name": "ann", **dict.fromkeys(f"{words} {more}".split(), "x")}
    vocabulary.check({"users": [user], "rpi": {"interfaces": {"spi": True}}})


SOUND = """#cloud-config
groups: [admins, {cloud: [ann]}]
chpasswd: {expire: false, list: ["ann:s3cret"]}
password: s3cret
ssh_import_id: [gh:ann]
ntp:
users:
- default
- {name: ann, plain_text_passwd: s3cret, ssh_import_id: [gh:ann], uid: 2000}
- {snapuser: ann@example.com}
"""


@pytest.mark.parametrize("text", [SOUND, "#cloud-config\nusers: default\n", "#cloud-config\nusers: {ann: true, default: true}\n"])
def test_what_cloud_init_takes_is_sound(text: str, tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text(text)
    done = CliRunner().invoke(cli, ["host:check", str(tmp_path / "user-data")])
    assert done.exit_code == 0, done.exception


def test_what_the_schema_alone_finds_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\nssh_genkeytypes: [42]\n")
    done = CliRunner().invoke(cli, ["host:check", str(tmp_path / "user-data")])
    assert isinstance(done.exception, InvalidParams) and "ssh_genkeytypes" in done.exception.message


def test_more_than_some_clouds_take_is_told() -> None:
    words = ["host:user-data", "--domain", "apps.example.com", "--git", "https://x/y.git"]
    assert CliRunner().invoke(cli, words).stderr == ""
    asked = CliRunner().invoke(cli, [*words, "--set", "DAVIT_MIRROR=" + "x" * 16384])
    assert asked.exit_code == 0 and "Amazon EC2 takes 16 KB" in asked.stderr and "Amazon" not in asked.stdout


def test_what_is_generated_passes_its_own_check() -> None:
    vocabulary.check(document(EVERYTHING))


def test_the_seed_disk_holds_what_cloud_init_looks_for(tmp_path: Path) -> None:
    from pycdlib import PyCdlib

    seed.write(tmp_path / "seed.iso", cloudconfig.user_data(HOST), seed.meta_data("one", "davit-1"), "version: 2\n")
    assert (tmp_path / "seed.iso").stat().st_mode & 0o777 == 0o600
    probed = subprocess.run(["blkid", "-o", "export", tmp_path / "seed.iso"], capture_output=True, text=True).stdout
    assert "LABEL=cidata" in probed and "TYPE=iso9660" in probed
    disk = PyCdlib()
    disk.open(str(tmp_path / "seed.iso"))
    try:
        for name, text in (
            ("user-data", cloudconfig.user_data(HOST)),
            ("meta-data", "instance-id: one\nlocal-hostname: davit-1\n"),
        ):
            got = io.BytesIO()
            disk.get_file_from_iso_fp(got, rr_path=f"/{name}")
            assert got.getvalue().decode() == text
    finally:
        disk.close()


def test_a_seed_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(seed.SeedFailed, match="cannot be written"):
        seed.write(tmp_path / "nowhere" / "seed.iso", "#cloud-config\n", "instance-id: x\n")


# -- units


def composed(tmp_path: Path) -> dict[str, str]:
    settings = from_environment({"DAVIT_HOME": str(tmp_path), "DAVIT_API": "0.0.0.0:5000"})
    return install.compose(tmp_path / "env", {"DATABASE_URL": "postgresql://x:s3cret@y/z"}, settings, "davit")


def test_every_line_of_procfile_has_a_unit_and_only_runtime_is_roots(tmp_path: Path) -> None:
    texts = composed(tmp_path)
    assert {name for name in texts if name.startswith("davit-")} == {
        f"davit-{name}.service" for name in ("prepare", "redis", "logs", "router", "runtime", "worker", "ssh", "web")
    }
    assert [name for name, text in texts.items() if "ExecStart" in text and "User=davit" not in text] == [
        units.PREPARE,
        "davit-runtime.service",
    ]
    assert "0.0.0.0:5000" in texts["davit-web.service"]
    assert not [name for name, text in texts.items() if "s3cret" in text]


def test_a_home_that_is_there_keeps_its_owner(tmp_path: Path) -> None:
    assert install.owner(tmp_path) == tmp_path.owner() and install.owner(tmp_path / "none") == "davit"


def test_what_is_made_ready_again_takes_all_along_but_redis(tmp_path: Path) -> None:
    """systemd ends what requires davit-prepare before it restarts that; no process works on what another version migrates."""
    texts = {name: text for name, text in composed(tmp_path).items() if name not in (units.TARGET, units.PREPARE)}
    assert [name for name, text in texts.items() if f"Requires={units.PREPARE}" not in text] == [units.REDIS]
    assert all(f"After={units.PREPARE}" in text for text in texts.values())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_them(tmp_path: Path) -> None:
    texts = composed(tmp_path)
    for name, text in texts.items():
        (tmp_path / name).write_text(text.replace("User=davit", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", *(tmp_path / name for name in texts)], capture_output=True, text=True)
    assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line and "davit" in line], done.stderr


def test_units_are_written_once_and_those_no_longer_wanted_are_found(tmp_path: Path) -> None:
    texts = composed(tmp_path)
    place = tmp_path / "units"
    place.mkdir()
    (place / "davit-firewall.service").write_text("[Unit]\n")
    assert set(install.write(texts, place)) == set(texts)
    assert install.write(texts, place) == []
    assert install.unwanted(texts, place) == []
    texts.pop("davit-redis.service")
    assert install.unwanted(texts, place) == ["davit-redis.service"]


def test_words_with_specifiers_and_variables_stay_what_they_are() -> None:
    made = units.Installation(
        Path("/opt/davit"), Path("/h"), "davit", Path("/e"), {"A": "100% $x"}, {"web": ["/bin/x", "$HOME", "a b", "50%"]}
    )
    text = units.compose(made)["davit-web.service"]
    assert 'ExecStart=/bin/x $$HOME "a b" 50%%' in text and 'Environment="A=100%% $x"' in text

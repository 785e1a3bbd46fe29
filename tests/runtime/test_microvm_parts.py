"""The pure parts of the microVM driver: frames, which a hostile guest writes, and what goes into the kernel's file system."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.settings import from_environment
from runtime.driver import Listener, Stats
from runtime.dynodir import DynoDirectory, Record
from runtime.host import Host
from runtime.instance import Instance
from runtime.library import Library
from runtime.microvm import kernel, kernel_builder, machine, protocol
from runtime.microvm.allowance import Allowance
from runtime.microvm.kernel import KernelMissing
from runtime.microvm.machine import Machine
from runtime.microvm.protocol import Frame, Hunter, Order, Reader
from runtime.stacks import digest_of, locked


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 65535), st.binary(max_size=300)), max_size=8), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(protocol.frame(*one) for one in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    reader, found = Reader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == [Frame(*one) for one in sent]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_whatever_a_guest_writes_is_skipped_or_a_frame(pieces: list[bytes]) -> None:
    reader = Reader()
    for piece in pieces:
        for frame in reader.feed(piece):
            assert len(frame.payload) <= protocol.CHUNK
    whole = protocol.frame(protocol.DONE, 7)
    assert Frame(protocol.DONE, 7, b"") in list(reader.feed(bytes(protocol.CHUNK + 16) + whole + whole))


@given(st.binary(max_size=100))
def test_payloads_of_a_guest_are_read_without_surprise(payload: bytes) -> None:
    status, _ = protocol.exited(payload)
    assert 0 <= status <= 255
    for one in protocol.listeners(payload):
        assert 0 <= one.port <= 65535
    told = protocol.figures(payload)
    assert (told is None) == (len(payload) != 48)
    assert protocol.count(payload) >= 0


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_the_answer_to_a_sync_is_found_behind_the_rest_of_an_earlier_talk(before: bytes, after: bytes) -> None:
    nonce = b"0123456789abcdef"
    answer = protocol.frame(protocol.SYNCED, 0, nonce + struct.pack("<IBiB", 1, 2, 7, 1) + bytes(2))
    hunter = Hunter(nonce)
    assert hunter.feed(before) is None
    found = hunter.feed(answer + after)
    assert found is not None
    state, rest = found
    assert (state.version, state.state, state.status, state.oom, rest) == (1, "over", 7, True, after)


def test_an_allowance_comes_back_with_time_and_is_never_more_than_it_was() -> None:
    allowance = Allowance(10, 2, now=100.0)
    assert [allowance.take(10, 100.0), allowance.take(1, 100.0), allowance.take(3, 100.5)] == [0.0, 0.5, 1.5]
    assert [allowance.take(0, 200.0), allowance.take(11, 200.0)] == [0.0, 0.5]


def test_listeners_and_figures() -> None:
    told = struct.pack("<B16sH", 4, bytes([127, 0, 0, 1]) + bytes(12), 5000) + struct.pack("<B16sH", 6, bytes(16), 80)
    assert protocol.listeners(told) == [Listener("127.0.0.1", 5000), Listener("::", 80)]
    assert len(protocol.listeners(told * 1000)) == protocol.MOST_LISTENERS
    assert protocol.figures(struct.pack("<6Q", 1, 2, 3_000_000, 4, 5, 6)) == (Stats(1, 2, 3.0, 4, 5), 6)


def test_a_large_order_goes_in_many_frames() -> None:
    order = Order(argv=["a"], env={"LONG": "x" * 200_000}, memory=1 << 30, terminal=(20, 70), readonly=True)
    frames = list(Reader().feed(protocol.order(protocol.START, 0, order)))
    assert [frame.type for frame in frames] == [protocol.SPEC] * 4 + [protocol.START]
    assert b"".join(frame.payload for frame in frames) == order.encode()


def test_what_a_machine_is_composed_of_has_a_version() -> None:
    """Whoever changes what a guest finds in its machine raises FORM: one that runs or sleeps can go on in no other."""
    wanted = Machine("app/web.1", 224 * machine.MIB, 1 << 30, 1, 2, mac="02:00:00:00:00:02")
    composed = [machine.command("qemu", replace(wanted, kvm=kvm)) for kvm in (False, True)]
    assert (machine.FORM, hashlib.sha256(json.dumps(composed).encode()).hexdigest()[:16]) == (2, "24acdc77fa1fa13e")


def _module(*needs: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0"


def test_modules_come_after_those_that_they_need() -> None:
    names = [*kernel_builder.MODULES, "failover"]
    files = {f"{name.replace('_', '-')}.ko.xz": lzma.compress(_module()) for name in names}
    files["virtio-net.ko.xz"] = lzma.compress(_module("failover"))
    files["modules.builtin"] = (
        b"kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/char/virtio_console.ko\nkernel/fs/ext4/ext4.ko\n"
    )
    order = [name for name, _ in kernel_builder.modules_in_order(files)]
    assert order.index("failover") < order.index("virtio_net")
    assert "ext4" not in order
    del files["erofs.ko.xz"]
    with pytest.raises(KernelMissing, match="no module erofs"):
        kernel_builder.modules_in_order(files)


def test_the_initramfs_is_an_archive_that_cpio_knows() -> None:
    packed = kernel_builder.archive([("one", b"module")], b"agent")
    assert packed.startswith(b"070701") and b"TRAILER!!!" in packed
    assert len(packed) % 4 == 0
    assert packed.index(b"modules/00-one.ko\0") < packed.index(b"init\0")


def test_what_is_no_kernel_image_has_no_payload() -> None:
    assert kernel_builder.payload_of(b"no kernel" * 100) == b""


def test_what_was_made_by_this_recipe_before_is_taken_again(tmp_path: Path) -> None:
    """Two checkouts on one host, with different guest agents, do not make their kernels anew at every turn."""
    _kernels(tmp_path, {"1-old": "old", f"1-{kernel_builder.recipe()}": kernel_builder.recipe()})
    assert kernel.outdated(kernel.current(tmp_path))
    found = kernel.ensure(tmp_path)
    assert found == kernel.current(tmp_path) and not kernel.outdated(found)


def _kernels(root: Path, recipes: dict[str, str]) -> Path:
    """Versions with what they were made by; the first is the current one."""
    folder = root / kernel.NAME
    for version, recipe in recipes.items():
        place = folder / version
        place.mkdir(parents=True)
        (place / "vmlinux").write_bytes(version.encode())
        (place / "initramfs").write_bytes(b"")
        files = {part: {"size": (place / part).stat().st_size, "digest": digest_of(place / part)} for part in kernel_builder.PARTS}
        (place / "kernel.json").write_text(json.dumps({"recipe": recipe, "files": files}))
    kernel_builder.point_to(folder / next(iter(recipes)))
    return folder


def test_kernels_that_nothing_uses_go_an_hour_after_a_newer_one_where_no_other_davit_has_them(tmp_path: Path) -> None:
    home, shared = {"DAVIT_HOME": str(tmp_path)}, {"DAVIT_STACKS": f"{tmp_path}/shared"}
    for chosen in (from_environment(home | shared), from_environment(home)):
        library = Library(chosen)
        assert library.collect_kernels(set) == [], "there is none yet"
        folder = _kernels(chosen.stacks, {"3": "", "1": "", "2": ""})
        assert library.collect_kernels(set) == [], "the newest has only just become it"
        os.utime(folder / "current", (0, 0), follow_symlinks=False)
        gone = library.collect_kernels(lambda: {"2"})
    assert gone == ["1"] and sorted(path.name for path in folder.iterdir()) == [".lock", "2", "3", "current"]
    assert (chosen.home / "shared" / kernel.NAME / "1").exists()
    (folder / ".removing-0").mkdir()  # a removal that was cut short
    with locked(folder, lambda: None):
        assert library.collect_kernels(set) == [], "one is just being made"
    assert library.collect_kernels(set) == ["2"] and not (folder / ".removing-0").exists()
    assert kernel.current(chosen.stacks).version == "3"


def test_kernels_of_machines_that_are_there_and_of_those_that_are_still_to_be_started_are_in_use(tmp_path: Path) -> None:
    host = Host(from_environment({"DAVIT_HOME": str(tmp_path)}), Instance.numbered(0))
    host.kernels.add("2")
    host.dynos.mkdir(parents=True)
    for id, facts in (("a", {"kernel": "1"}), ("b", {})):
        DynoDirectory(host.dynos / id).create(Record(id, "app-id", "web.1", 1, "/none", "", facts=facts))
    assert host.kernels_in_use() == {"1", "2"}

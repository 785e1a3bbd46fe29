"""The store keeps what is put, exactly, for as long as it is needed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import suppress
from datetime import timedelta
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from slugs.image import LARGEST, SealFailed, SlugTooLarge
from slugs.store import GRACE, SlugDamaged, SlugMissing, Store, size_warning

AGED = GRACE + timedelta(minutes=1)


def content(words: bytes) -> bytes:
    """What the store takes for an erofs image: only its magic number is looked at."""
    return b"\0" * 1024 + b"\xe2\xe1\xf5\xe0" + words


def an_image(folder: Path, words: bytes = b"app") -> Path:
    path = folder / hashlib.sha256(words).hexdigest()[:12]
    path.write_bytes(content(words))
    return path


def age(store: Store, digest: str, by: timedelta = AGED) -> None:
    status = store.path(digest).stat()
    os.utime(store.path(digest), (status.st_atime, status.st_mtime - by.total_seconds()))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "slugs")


def test_a_slug_is_named_by_its_content(store: Store, tmp_path: Path) -> None:
    stored = store.put(an_image(tmp_path))
    assert stored.digest == f"sha256:{hashlib.sha256(content(b'app')).hexdigest()}"
    assert stored.size == len(content(b"app"))
    assert store.path(stored.digest).name == f"{stored.digest[7:]}.erofs"
    assert store.path(stored.digest).read_bytes() == content(b"app")
    store.verify(stored.digest)


def test_the_same_content_is_kept_once(store: Store, tmp_path: Path) -> None:
    first = store.put(an_image(tmp_path))
    (tmp_path / "copy").write_bytes(content(b"app"))
    assert store.put(tmp_path / "copy") == first
    assert store.stored() == [first]


def test_a_slug_outlives_the_file_that_was_put(store: Store, tmp_path: Path) -> None:
    path = an_image(tmp_path)
    stored = store.put(path)
    path.unlink()
    store.verify(stored.digest)


def test_what_lies_on_another_file_system_is_copied(store: Store) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        stored = store.put(an_image(Path(elsewhere)))
    store.verify(stored.digest)


def test_a_half_written_file_of_that_name_is_replaced(store: Store, tmp_path: Path) -> None:
    digest = hashlib.sha256(content(b"app")).hexdigest()
    (store.root / f"{digest}.erofs").write_bytes(content(b"app")[:100])
    assert store.put(an_image(tmp_path)).digest == f"sha256:{digest}"
    store.verify(f"sha256:{digest}")


def test_only_images_are_stored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no image")
    with pytest.raises(SealFailed):
        store.put(tmp_path / "file")
    with (tmp_path / "file").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(SlugTooLarge, match="1024 MB"):
        store.put(tmp_path / "file")
    assert store.stored() == []


def test_a_store_takes_what_its_own_limit_allows(tmp_path: Path) -> None:
    image = an_image(tmp_path)
    size = image.stat().st_size
    with pytest.raises(SlugTooLarge, match=r"\.slugignore"):
        Store(tmp_path / "slugs", size - 1).put(image)
    assert Store(tmp_path / "slugs", size).put(image).size == size


@pytest.mark.parametrize("digest", ["", "sha256:" + "0" * 64, "../../etc/passwd", "sha256:../x", "sha256:" + "A" * 64, "0" * 64])
def test_an_unknown_slug_is_missing_whatever_its_name(store: Store, digest: str) -> None:
    with pytest.raises(SlugMissing):
        store.path(digest)


def test_damage_is_noticed(store: Store, tmp_path: Path) -> None:
    stored = store.put(an_image(tmp_path))
    path = store.path(stored.digest)
    path.chmod(0o644)
    path.write_bytes(content(b"apq"))
    with pytest.raises(SlugDamaged, match="damaged"):
        store.verify(stored.digest)


def test_collecting_removes_what_nothing_needs_and_nothing_else(store: Store, tmp_path: Path) -> None:
    needed, old, young = (store.put(an_image(tmp_path, words)).digest for words in (b"needed", b"old", b"young"))
    age(store, needed)
    age(store, old)
    (store.root / "README").write_text("somebody's")
    assert store.collect(lambda young: {needed}) == [old]
    assert {slug.digest for slug in store.stored()} == {needed, young}
    assert (store.root / "README").exists()


def test_putting_again_starts_the_grace_anew(store: Store, tmp_path: Path) -> None:
    digest = store.put(an_image(tmp_path)).digest
    age(store, digest)
    assert store.put(an_image(tmp_path)).digest == digest
    assert store.collect(lambda young: set()) == []
    store.verify(digest)


def test_collecting_clears_what_killed_processes_left(store: Store) -> None:
    (store.root / ".put-1-abc").write_text("half")
    (store.root / ".export-abc/tree/app").mkdir(parents=True)
    (store.root / ".export-abc/tree/app/closed").mkdir(mode=0)
    (store.root / ".put-2-def").write_text("under way")
    for name in (".put-1-abc", ".export-abc"):
        os.utime(store.root / name, (1, 1))
    assert store.collect(lambda young: set()) == []
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", ".put-2-def"]


def test_putting_and_collecting_at_once_loses_nothing(store: Store, tmp_path: Path) -> None:
    path = an_image(tmp_path)
    over = threading.Event()

    def collect() -> None:
        while not over.is_set():
            store.collect(lambda young: set())

    with ThreadPoolExecutor() as pool:
        collecting = pool.submit(collect)
        try:
            for _ in range(100):
                digest = store.put(path).digest
                store.verify(digest)
                with suppress(SlugMissing):
                    age(store, digest)
        finally:
            over.set()
    collecting.result()


def test_putting_waits_for_a_collection_under_way(store: Store, tmp_path: Path) -> None:
    store.collect(lambda young: set())
    with ThreadPoolExecutor() as pool, (store.root / ".lock").open() as lock:
        flock(lock, LOCK_EX)
        putting = pool.submit(store.put, an_image(tmp_path))
        with pytest.raises(TimeoutError):
            putting.result(0.3)
        assert store.stored() == []
        flock(lock, LOCK_UN)
        store.verify(putting.result(20).digest)


def test_a_kill_in_the_middle_leaves_only_whole_slugs(store: Store, tmp_path: Path) -> None:
    program = (
        "import sys, os; from pathlib import Path; from slugs.store import Store; store = Store(Path(sys.argv[1]))\n"
        "for number in range(10000):\n"
        "    path = Path(sys.argv[2]); path.unlink(missing_ok=True)\n"
        "    path.write_bytes(bytes(1024) + bytes.fromhex('e2e1f5e0') + os.urandom(300000))\n"
        "    print(store.put(path).digest, flush=True)\n"
    )
    told: list[str] = []
    for moment in (1, 4, 7):
        command = [sys.executable, "-c", program, store.root, tmp_path / "image"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told += [child.stdout.readline().strip() for _ in range(moment)]
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert len(told) == 12
    for digest in {slug.digest for slug in store.stored()} | set(told):
        store.verify(digest)


def test_a_large_slug_draws_a_warning() -> None:
    assert size_warning((300 << 20) - 1) is None
    assert "301 MB" in (size_warning(301 << 20) or "")
    assert size_warning(1 << 20, warn_from=2 << 20) is None and "2 MB" in (size_warning(2 << 20, warn_from=2 << 20) or "")


class StoreAsASet(RuleBasedStateMachine):
    """Whatever is put, aged and collected in whatever order: the store holds what a set with ages would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "slugs")
        self.expected: dict[str, bool] = {}

    @rule(words=st.binary(max_size=3))
    def put(self, words: bytes) -> None:
        self.expected[self.store.put(an_image(Path(self.folder.name), words)).digest] = True

    @rule(data=st.data())
    def grow_old(self, data: st.DataObject) -> None:
        if self.expected:
            digest = data.draw(st.sampled_from(sorted(self.expected)))
            age(self.store, digest)
            self.expected[digest] = False

    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        keep = set(data.draw(st.lists(st.sampled_from([*sorted(self.expected), "sha256:unknown"]))))
        removed = {digest for digest, young in self.expected.items() if not young and digest not in keep}
        assert set(self.store.collect(lambda young: keep)) == removed
        self.expected = {digest: young for digest, young in self.expected.items() if digest not in removed}

    @invariant()
    def holds_exactly_these_and_they_are_whole(self) -> None:
        assert {slug.digest for slug in self.store.stored()} == set(self.expected)
        for digest in self.expected:
            self.store.verify(digest)

    def teardown(self) -> None:
        self.folder.cleanup()


StoreAsASet.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestStoreAsASet = StoreAsASet.TestCase

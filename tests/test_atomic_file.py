"""A file is replaced as a whole, or stays as it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptycho_dist.atomic_file import replacing


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_content_stands_at_the_path_afterwards(tmp_path: Path) -> None:
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file.txt").read_text() == "new"


def test_old_file_stays_whole_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_no_file_appears_at_the_path_before_the_end(tmp_path: Path) -> None:
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "file.txt").exists()


def test_only_the_file_is_left(tmp_path: Path) -> None:
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_error_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_and_fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failing_rename_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("no")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002], indirect=True)
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("umask", [0o027], indirect=True)
def test_umask_of_the_process_is_left_as_it_was(tmp_path: Path, umask: int) -> None:
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    current = os.umask(umask)
    assert current == umask


def test_temporary_file_is_in_the_same_directory_hidden_and_of_the_same_suffix(
    tmp_path: Path,
) -> None:
    """A rename is atomic within one file system only; writers such as NumPy's add a suffix that
    they miss."""
    with replacing(tmp_path / "result.npz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".npz"


def test_missing_directory_is_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "run" / "plots" / "file.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "run" / "plots" / "file.txt").read_text() == "new"


def test_content_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the name must not stand for an empty file: content, then rename, then
    directory are flushed."""
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(handle: int) -> None:
        events.append(("fsync", os.fstat(handle).st_ino))
        fsync(handle)

    def recording_replace(source: Path, target: Path) -> None:
        events.append(("rename", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    written, directory = (tmp_path / "file.txt").stat().st_ino, tmp_path.stat().st_ino
    assert events == [("fsync", written), ("rename", written), ("fsync", directory)]


def test_writers_that_overlap_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]

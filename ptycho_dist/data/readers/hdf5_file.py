"""HDF5 files as strangers hand them over: opened for reading alone, nothing larger read than
expected, and links that lead nowhere reported by name.

Links of all kinds (soft, external, the sources of virtual datasets) are followed wherever the
user may read. HDF5 itself refuses circles of links. Raw external storage, which shows any file's
bytes as numbers, is refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import h5py
import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.content import Reader, ScanContent
from ptycho_dist.data.scan import ScanError

T = TypeVar("T")

LARGEST_SMALL_BYTES = 1 << 28
"""Limit for positions, masks and the like, which are read whole."""
LARGEST_IMAGE_BYTES = 1 << 32
"""Limit for probes and objects, which are read whole."""
DAMAGED_HDF5 = (OSError, KeyError, RuntimeError, TypeError)
"""What h5py raises where the bytes of a file contradict each other."""
_MOST_VIRTUAL_LAYERS = 16


class Hdf5File:
    """One HDF5 file, open while in a `with` block.

    Names are followed through links. Where something has no such name, methods return None.

    Parameters
    ----------
    path
        The file. Messages name it.

    Raises
    ------
    ScanError
        It isn't there, isn't HDF5, or is cut off; or h5py fails within the block.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.needs_plugins = False
        self._files: dict[Path, None] = {path.resolve(): None}

    def __enter__(self) -> Hdf5File:
        if not self.path.is_file():
            found = "no such file" if not self.path.exists() else "not a file"
            raise self.refused(str(self.path), found, "an HDF5 file")
        try:
            self.root = h5py.File(self.path.resolve(), "r")
        except OSError as error:
            expected = (
                "a file that nobody writes to (or HDF5_USE_FILE_LOCKING=FALSE)"
                if "lock" in str(error)
                else "an intact one"
            )
            raise self.refused("file", f"not a readable HDF5 file ({error})", expected) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(*DAMAGED_HDF5):
            self.root.close()
        if isinstance(error, DAMAGED_HDF5):
            raise self.refused(
                "file", f"HDF5 that can't be read ({error})", "an intact file"
            ) from error

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read so far, this one first."""
        return tuple(self._files)

    def refused(self, key: str, found: object, expected: str) -> ScanError:
        return ScanError(self.path, key, found, expected)

    def has(self, key: str) -> bool:
        return self._find(key) is not None

    def names(self, key: str = "/") -> list[str]:
        """Return the names in a group; none where there is no such group."""
        group = self._find(key)
        return list(group) if isinstance(group, h5py.Group) else []

    def first(self, keys: Sequence[str]) -> str | None:
        """Return the first of these names that leads to something."""
        return next((key for key in keys if self.has(key)), None)

    def dataset(self, key: str) -> h5py.Dataset | None:
        """Return a dataset that can and may be read."""
        item = self._find(key)
        if item is None:
            return None
        if not isinstance(item, h5py.Dataset):
            raise self.refused(key, "a group", "a dataset")
        self._require_readable(item, key)
        return item

    def number(self, key: str) -> float | None:
        """Return the one real number of a dataset."""
        dataset = self.dataset(key)
        if dataset is None:
            return None
        if dataset.size != 1:
            raise self.refused(key, f"{dataset.dtype} {dataset.shape}", "one real number")
        return self._finite(key, dataset[()])

    def attribute(self, key: str, name: str) -> float | None:
        """Return the one real number of an attribute of a dataset or group (`/`: of the file)."""
        item = self._find(key)
        if item is None or name not in item.attrs:
            return None
        return self._finite(f"{key} {name}", item.attrs[name])

    def array(
        self, key: str, *, kinds: str, largest_bytes: int = LARGEST_SMALL_BYTES
    ) -> np.ndarray | None:
        """Return a small dataset whole. MATLAB's complex numbers, pairs of real and imag, become
        complex.

        Raises
        ------
        ScanError
            Its numbers are of none of these `kinds` (NumPy's letters), or it is larger than
            `largest_bytes`.
        """
        dataset = self.dataset(key)
        if dataset is None:
            return None
        num_bytes = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
        if num_bytes > largest_bytes:
            found = f"shape {dataset.shape}, {num_bytes} bytes"
            raise self.refused(key, found, f"at most {largest_bytes}")
        if dataset.shape is None or 0 in dataset.shape:
            raise self.refused(key, f"shape {dataset.shape}", "an array with something in it")
        is_matlab_complex = dataset.dtype.names == ("real", "imag")
        if ("c" if is_matlab_complex else dataset.dtype.kind) not in kinds:
            expected = "complex numbers" if kinds == "c" else "real numbers"
            raise self.refused(key, f"type {dataset.dtype}", expected)
        try:
            array = dataset[()]
        except OSError as error:
            found = f"data that can't be read ({error})"
            raise self.refused(key, found, "an intact file") from error
        return array["real"] + 1j * array["imag"] if is_matlab_complex else array

    def image(self, key: str) -> np.ndarray | None:
        """Return a complex dataset whole: a probe, an object."""
        return self.array(key, kinds="c", largest_bytes=LARGEST_IMAGE_BYTES)

    def missing(self, key: str, expected: str) -> ScanError:
        """Return the error for a dataset that must be there."""
        return self.refused(key, f"no such dataset; the file has {self.names()[:12]}", expected)

    def _finite(self, key: str, value: object) -> float:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.size != 1:
            raise self.refused(key, f"{array.dtype} {array.shape}", "one real number")
        number = float(array.reshape(-1)[0])
        if not math.isfinite(number):
            raise self.refused(key, number, "a finite number")
        return number

    def _find(self, key: str) -> h5py.Dataset | h5py.Group | None:
        try:
            item = self.root[key]
        except (KeyError, RuntimeError) as error:
            if "too many links" in str(error):
                raise self.refused(key, "links in a circle", "links that lead to data") from error
            self._require_links_lead_somewhere(key)
            return None
        self._files[Path(item.file.filename).resolve()] = None
        return item

    def _require_links_lead_somewhere(self, key: str) -> None:
        """Refuse a name that leads through an external link that can't be followed."""
        parts = [part for part in key.split("/") if part]
        for depth in range(len(parts)):
            parent, name = "/".join(parts[:depth]) or "/", parts[depth]
            if not isinstance(group := self.root.get(parent), h5py.Group):
                return
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink) and group.get(name) is None:
                found = f"a link to {link.filename}"
                target = _located(group.file, link.filename)
                link_key = f"/{'/'.join(parts[: depth + 1])}"
                if not target.is_file():
                    found += ", which is not there"
                    raise self.refused(link_key, found, f"the file at {target}")
                try:
                    with Hdf5File(target) as other:
                        other.has(link.path)
                except ScanError as error:
                    found += f" that can't be followed ({error})"
                    raise self.refused(link_key, found, "a file that can be read") from error
            elif isinstance(link, h5py.SoftLink) and group.get(name) is None:
                start = "" if link.path.startswith("/") else f"{parent}/"
                self._require_links_lead_somewhere(f"{start}{link.path}")

    def _require_readable(self, dataset: h5py.Dataset, key: str, layer: int = 0) -> None:
        """Refuse raw external storage and virtual datasets that lack a source, and load the plugin
        for a compression that HDF5 itself does not know."""
        if layer > _MOST_VIRTUAL_LAYERS:
            raise self.refused(key, "virtual datasets of virtual datasets without end", "data")
        if dataset.external:
            found = f"raw data in {dataset.external[0][0]}"
            raise self.refused(key, found, "data in the file itself")
        if not dataset.is_virtual:
            self._require_filters(dataset, key)
            return
        sources = [(source.file_name, source.dset_name) for source in dataset.virtual_sources()]
        for file_name, name in dict.fromkeys(sources):
            if "%b" in file_name:
                found = f"a virtual dataset over {file_name}"
                raise self.refused(key, found, "one that names its files")
            # HDF5 itself would read zeros where a source is missing
            if file_name == ".":
                self._require_source(dataset.file, key, file_name, name, layer)
                continue
            target = _located(dataset.file, file_name)
            if not target.is_file():
                found = f"a link to {file_name}, which is not there"
                raise self.refused(key, found, f"the file at {target}")
            self._files[target] = None
            with Hdf5File(target) as other:
                self._require_source(other.root, key, file_name, name, layer)

    def _require_source(
        self, file: h5py.File, key: str, file_name: str, name: str, layer: int
    ) -> None:
        source = file.get(name)
        if not isinstance(source, h5py.Dataset):
            found = f"{name} missing in {file_name}, which the virtual dataset is made of"
            raise self.refused(key, found, "all its sources")
        self._require_readable(source, key, layer + 1)

    def _require_filters(self, dataset: h5py.Dataset, key: str) -> None:
        """Refuse chunks that neither HDF5 nor hdf5plugin can unpack."""
        filters = dataset_filters(dataset)
        if "hdf5plugin" not in sys.modules and all(map(h5py.h5z.filter_avail, filters)):
            return
        import hdf5plugin  # noqa: F401  registers its filters

        self.needs_plugins = True
        for code, name in filters.items():
            if not h5py.h5z.filter_avail(code):
                raise self.refused(
                    key,
                    f"chunks packed with filter {code} ({name})",
                    "a compression that HDF5 or hdf5plugin knows; repack it: h5repack -f GZIP=4",
                )


def dataset_filters(dataset: h5py.Dataset) -> dict[int, str]:
    """Return codes and names of the filters that a dataset's chunks are packed with."""
    properties = dataset.id.get_create_plist()
    filters = map(properties.get_filter, range(properties.get_nfilters()))
    return {code: name.decode(errors="replace") for code, _, _, name in filters}


def linked_files(path: Path) -> list[Path]:
    """Return the files that links and virtual datasets of an HDF5 file lead to, directly or through
    one another, without those that are missing."""
    found: dict[Path, None] = {}
    todo = [path.resolve()]
    while todo:
        if (here := todo.pop()) in found or not h5py.is_hdf5(here):
            continue
        found[here] = None
        with Hdf5File(here) as file:
            todo += [_located(file.root, name) for name in _linked_names(file.root)]
    return [other for other in found if other != path.resolve()]


def _linked_names(file: h5py.File) -> list[str]:
    names: list[str] = []

    def look_at_link(_: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            names.append(link.filename)

    def look_at_item(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            names.extend(source.file_name for source in item.virtual_sources())

    file.visititems_links(look_at_link)
    file.visititems(look_at_item)
    return [name for name in dict.fromkeys(names) if name != "."]


def _located(file: h5py.File, name: str) -> Path:
    """Return where HDF5 finds a file that a link in `file` names: relative to it; if an absolute
    name leads nowhere, beside it, where a scan was moved with its links."""
    folder = Path(file.filename).parent
    target, beside = folder / name, folder / Path(name).name
    return (
        beside if not target.is_file() and beside.is_file() and Path(name).is_absolute() else target
    ).resolve()


def hdf5_reader(
    name: str,
    *,
    needs: str,
    recognises: Callable[[Hdf5File], bool],
    read: Callable[[Hdf5File, ScanConfig], ScanContent],
    read_object: Callable[[Hdf5File], np.ndarray | None] | None = None,
    accepts: Sequence[str] = ("transpose",),
) -> Reader:
    """Return the row of a reader that is handed the opened HDF5 file."""

    def with_file(path: Path, action: Callable[[Hdf5File], T]) -> T:
        with Hdf5File(path) as file:
            return action(file)

    return Reader(
        name=f"HDF5, {name}",
        needs=f"{name}: {needs}",
        recognises=lambda path, options: h5py.is_hdf5(path) and with_file(path, recognises),
        read=lambda path, options: with_file(path, lambda file: read(file, options)),
        read_object=None
        if read_object is None
        else lambda path, options: with_file(path, read_object),
        accepts=frozenset(accepts),
    )

"""HDF5 files as strangers hand them over: opened for reading alone, their links followed by hand,
nothing larger read than expected.

The library by itself follows a link to any file on the machine. Here links of all kinds (soft,
external, the sources of virtual datasets) end in the folder of the scan file or below, where the
data files of a NeXus master lie; anything else is refused with a message.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho_dist.data.scan import ScanError

if TYPE_CHECKING:
    import h5py

LARGEST_SMALL_BYTES = 1 << 28
"""Of positions, masks and the like, which are read whole."""
LARGEST_IMAGE_BYTES = 1 << 32
"""Of probes and objects, which are read whole."""
_MOST_LINKS = 16


class Hdf5File:
    """One HDF5 file and those that its links lead to, open while in a `with` block.

    Parameters
    ----------
    path
        The file. Messages name it, and its folder is where its links may lead.

    Raises
    ------
    ScanError
        It isn't there, isn't HDF5, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve().parent
        self._files: dict[Path, h5py.File] = {}
        self._stack = ExitStack()
        self.needs_plugins = False

    def __enter__(self) -> Hdf5File:
        self._main = self._open(self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def files(self) -> tuple[Path, ...]:
        """Of all that was read so far."""
        return tuple(self._files)

    @property
    def root(self) -> h5py.File:
        """The file itself, for its names and attributes; what lies behind a name is asked of
        `dataset`."""
        return self._main

    def refused(self, key: str, found: object, expected: str) -> ScanError:
        return ScanError(self.path, key, found, expected)

    def has(self, key: str) -> bool:
        return self._find(self._main, key) is not None

    def names(self, key: str = "/") -> list[str]:
        """Of what a group holds; none where there is no such group."""
        found = self._find(self._main, key)
        item = found[0][found[1]] if found else {}
        return list(item) if hasattr(item, "keys") else []

    def dataset(self, key: str) -> h5py.Dataset | None:
        """A dataset that may be read, or None where nothing has this name."""
        import h5py

        found = self._find(self._main, key)
        if found is None:
            return None
        item = found[0][found[1]]
        if not isinstance(item, h5py.Dataset):
            raise self.refused(key, "a group", "a dataset")
        self._require_readable(item, key)
        return item

    def number(self, key: str) -> float | None:
        """The one real number of a dataset, or None where nothing has this name."""
        dataset = self.dataset(key)
        if dataset is None:
            return None
        if dataset.dtype.kind not in "fiu" or dataset.size != 1:
            raise self.refused(key, f"{dataset.dtype} {dataset.shape}", "one real number")
        return self._finite(key, dataset[()])

    def attribute(self, key: str, name: str) -> float | None:
        """The one real number of an attribute of a dataset or group (`/`: of the file), or None."""
        found = self._find(self._main, key)
        if found is None or name not in found[0][found[1] or "/"].attrs:
            return None
        value = np.asarray(found[0][found[1] or "/"].attrs[name])
        if value.dtype.kind not in "fiu" or value.size != 1:
            raise self.refused(f"{key} {name}", f"{value.dtype} {value.shape}", "one real number")
        return self._finite(f"{key} {name}", value)

    def array(
        self, key: str, *, kinds: str, largest_bytes: int = LARGEST_SMALL_BYTES
    ) -> np.ndarray | None:
        """A small dataset whole, or None where nothing has this name. MATLAB's complex numbers,
        pairs of real and imag, are made complex.

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
            raise self.refused(
                key, f"shape {dataset.shape}, {num_bytes} bytes", f"at most {largest_bytes}"
            )
        if dataset.shape is None or 0 in dataset.shape:
            raise self.refused(key, f"shape {dataset.shape}", "an array with something in it")
        is_matlab_complex = dataset.dtype.names == ("real", "imag")
        if ("c" if is_matlab_complex else dataset.dtype.kind) not in kinds:
            raise self.refused(
                key, f"type {dataset.dtype}", "complex numbers" if kinds == "c" else "real numbers"
            )
        try:
            array = dataset[()]
        except OSError as error:
            raise self.refused(
                key, f"data that can't be read ({error})", "an intact file"
            ) from error
        return array["real"] + 1j * array["imag"] if is_matlab_complex else array

    def first(self, keys: Sequence[str]) -> str | None:
        """The first of these names that leads to something."""
        return next((key for key in keys if self.has(key)), None)

    def linked_files(self) -> list[Path]:
        """The other files that links and virtual datasets lead to, directly or by way of one
        another; without what may not be read."""
        import h5py

        seen: set[tuple[int, int]] = set()
        todo: list[h5py.Group | h5py.Dataset] = [self._main]
        while todo:
            item = todo.pop()
            info = h5py.h5o.get_info(item.id)
            if (info.fileno, info.addr) in seen:
                continue
            seen.add((info.fileno, info.addr))
            names: list[tuple[str, str]] = []
            if isinstance(item, h5py.Dataset):
                names = (
                    [(source.file_name, source.dset_name) for source in item.virtual_sources()]
                    if item.is_virtual
                    else []
                )
            else:
                for name in item:
                    link = item.get(name, getlink=True)
                    if isinstance(link, h5py.ExternalLink):
                        names.append((link.filename, link.path))
                    elif isinstance(link, h5py.HardLink):
                        child = item[name]
                        todo += [child] if isinstance(child, h5py.Group | h5py.Dataset) else []
            for file_name, name in names:
                with suppress(ScanError):
                    other = (
                        item.file
                        if file_name == "."
                        else self._open(self._within(item.file, file_name, name))
                    )
                    target = self._find(other, name)
                    todo += [target[0][target[1]]] if target else []
        return [path for path in self._files if path != self.path.resolve()]

    def _finite(self, key: str, value: Any) -> float:
        number = float(
            np.asarray(value).reshape(())
            if np.ndim(value) == 0
            else np.asarray(value).reshape(-1)[0]
        )
        if not math.isfinite(number):
            raise self.refused(key, number, "a finite number")
        return number

    def _open(self, path: Path) -> h5py.File:
        import h5py

        resolved = path.resolve()
        if resolved not in self._files:
            if not path.is_file():
                raise self.refused(
                    str(path), "no such file" if not path.exists() else "not a file", "an HDF5 file"
                )
            try:
                self._files[resolved] = self._stack.enter_context(h5py.File(resolved, "r"))
            except OSError as error:
                expected = (
                    "an intact one"
                    if "lock" not in str(error)
                    else "a file that nobody writes to (or HDF5_USE_FILE_LOCKING=FALSE)"
                )
                raise ScanError(
                    path, "file", f"not a readable HDF5 file ({error})", expected
                ) from error
        return self._files[resolved]

    def _find(self, file: h5py.File, key: str, links: int = 0) -> tuple[h5py.File, str] | None:
        """The file and the name in it, free of links, that a name stands for; None where it stands
        for nothing."""
        import h5py

        if links > _MOST_LINKS:
            raise self.refused(
                key, f"more than {_MOST_LINKS} links one after the other", "links that lead to data"
            )
        names = [name for name in key.split("/") if name not in ("", ".")]
        here = ""
        for depth, name in enumerate(names):
            parent = file[here or "/"]
            if not isinstance(parent, h5py.Group):
                return None
            link = parent.get(name, getlink=True)
            rest = names[depth + 1 :]
            if link is None:
                return None
            if isinstance(link, h5py.SoftLink):
                start = [] if link.path.startswith("/") else [here]
                return self._find(file, "/".join([*start, link.path, *rest]), links + 1)
            if isinstance(link, h5py.ExternalLink):
                other = self._open(self._within(file, link.filename, f"{here}/{name}"))
                return self._find(other, "/".join([link.path, *rest]), links + 1)
            here = f"{here}/{name}"
        return file, here or "/"

    def _within(self, file: h5py.File, name: str, key: str) -> Path:
        """The file that a link names, if it lies in the scan's folder or below."""
        target = (Path(file.filename).parent / name).resolve()
        # as the library does where a scan was moved with its absolute links
        beside = Path(file.filename).parent / Path(name).name
        if not target.is_relative_to(self._root) and Path(name).is_absolute() and beside.is_file():
            target = beside.resolve()
        if not target.is_relative_to(self._root):
            raise self.refused(
                key,
                f"a link to {name}",
                f"links to files in {self._root} or below; copy the file there and link to that",
            )
        if not target.is_file():
            raise self.refused(
                key, f"a link to {name}, which is not there", f"the file at {target}"
            )
        return target

    def _require_readable(self, dataset: h5py.Dataset, key: str, links: int = 0) -> None:
        """Refuse data that lie elsewhere, and find the plugin for a compression that HDF5 itself
        does not know."""
        if links > _MOST_LINKS:
            raise self.refused(key, "virtual datasets of virtual datasets without end", "data")
        if dataset.external:
            raise self.refused(
                key, f"raw data in {dataset.external[0][0]}", "data in the file itself"
            )
        if not dataset.is_virtual:
            self._require_filters(dataset, key)
            return
        for source in {
            (source.file_name, source.dset_name) for source in dataset.virtual_sources()
        }:
            file_name, name = source
            if "%b" in file_name:
                raise self.refused(
                    key, f"a virtual dataset over {file_name}", "one that names its files"
                )
            other = (
                dataset.file
                if file_name == "."
                else self._open(self._within(dataset.file, file_name, key))
            )
            found = self._find(other, name)
            if found is None:  # the library would read zeros there
                raise self.refused(
                    key,
                    f"{name} missing in {file_name}, which the virtual dataset is made of",
                    "all its sources",
                )
            self._require_readable(found[0][found[1]], key, links + 1)

    def _require_filters(self, dataset: h5py.Dataset, key: str) -> None:
        """Make sure that a dataset's chunks can be unpacked, with hdf5plugin where HDF5 itself
        can't."""
        import h5py

        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
        if "hdf5plugin" not in sys.modules and all(
            h5py.h5z.filter_avail(code) for code, *_ in filters
        ):
            return
        import hdf5plugin  # noqa: F401  registers its filters

        self.needs_plugins = True
        for code, _, _, name in filters:
            if not h5py.h5z.filter_avail(code):
                found = f"chunks packed with filter {code} ({name.decode(errors='replace')})"
                raise self.refused(
                    key,
                    found,
                    "a compression that HDF5 or hdf5plugin knows; repack it: h5repack -f GZIP=4",
                )

"""Reads what HDF5 files from elsewhere contain, and nothing that they refer to."""

from __future__ import annotations

import h5py

MOST_PACKED = 1032
"""Largest number of bytes of values for one stored byte, with the filter `gzip`."""


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns the datasets of an open file by their full names, after checks that read no value.

    An HDF5 file can take its values from other files: by a link, as external storage or as a
    virtual dataset. Its header can also promise values that the file does not hold.

    Args:
      file: a file open for reading.

    Raises:
      ValueError: the file refers to another file, contains any link, or has a dataset that is
        larger than its stored bytes can be.
    """
    links: list[str] = []

    def look(name: bytes, info: h5py.h5l.LinkInfo) -> None:
        if info.type != h5py.h5l.TYPE_HARD:
            links.append(name.decode("utf-8", "replace"))

    file.id.links.visit(look, info=True)
    if links:
        raise ValueError(f"{links[0]} is a link, which may lead to another file")
    found: dict[str, h5py.Dataset] = {}

    def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(take)
    for name, dataset in found.items():
        created = dataset.id.get_create_plist()
        if created.get_external_count() or created.get_layout() == h5py.h5d.VIRTUAL:
            raise ValueError(f"the values of {name} are in another file")
        stored = min(dataset.id.get_storage_size(), file.id.get_filesize()) * (
            MOST_PACKED if created.get_nfilters() else 1
        )
        if dataset.nbytes > stored:
            raise ValueError(
                f"the header promises {dataset.nbytes:,} bytes of {name}, more than the file holds"
            )
    return found

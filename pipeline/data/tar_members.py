"""Members of a tar: read by one pass over its headers, or appended."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

_BUFFER = 16 * 1024  # bytes read at once
_COMPRESSED = {  # first bytes: the format, and the program that unpacks it
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


def tar_members(
    path: Path,
    start: int = 0,
    end: int | None = None,
    others: bool = False,
    complete: bool = False,
) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar; offsets count from the first byte of the file at ``path``.

    Args:
        path: the file.
        start: position of the tar's first byte in the file.
        end: largest valid position of the tar's end.
        others: yield folders and links too.
        complete: refuse a file that ends after a member, without the block of zeros that ends a
            tar. Some programs do not write it.

    Raises:
        UserError: the file is missing, not a tar, compressed, or cut short.
    """
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    # A million TarInfo objects would cost gigabytes. typeshed lacks the attribute.
                    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                    is_link = member.issym() or member.islnk()
                    if member.isfile() or (others and (member.isdir() or is_link)):
                        yield member
                    last = member.offset_data + member.size
                    if end is not None and last > end:
                        raise tarfile.ReadError("a class archive is longer than its entry")
                # tarfile treats a damaged header as the end. A real end is a block of zeros.
                file.seek(archive.offset)
                last_block = file.read(tarfile.BLOCKSIZE)
                if complete and not last_block:
                    raise tarfile.ReadError("it ends without a block of zeros")
                if last_block.strip(b"\0"):
                    raise tarfile.ReadError(f"no member header at byte {archive.offset:,}")
    except (tarfile.TarError, OSError) as error:
        raise UserError(_unreadable_message(path, error)) from None


def append_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file; the same name and content give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _unreadable_message(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError as reading_error:
        return f"{path} cannot be read ({reading_error.strerror})"
    for mark, (kind, program) in _COMPRESSED.items():
        if begin.startswith(mark):
            return (
                f"{path} is compressed with {kind}, and images are read in place; unpack it first: "
                f"{program} {path.name}"
            )
    if begin.startswith(b"PK\x03\x04"):
        return f"{path} is a ZIP archive; unpack it, and use tools/index.py folder"
    return f"{path} cannot be read as a tar: {error}; is the download complete?"


def file_size(path: Path) -> int:
    """Size of an archive, in bytes.

    Raises:
        UserError: the file is missing, or a folder.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, not an archive; for unpacked images: tools/index.py folder {path}"
        )
    if not path.is_file():
        raise UserError(f"no file {path}")
    return path.stat().st_size


def check_complete(path: Path, member: tarfile.TarInfo, size: int) -> None:
    """Refuse a member that ends after the end of the file.

    Raises:
        UserError: the member is cut short.
    """
    if member.offset_data + member.size > size:
        raise UserError(
            f"{path} ends inside its member {member.name}; the download is not complete"
        )

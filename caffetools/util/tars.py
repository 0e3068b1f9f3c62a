"""Tar files read to their end: what the standard library takes for the end of a damaged one is an error here."""

from __future__ import annotations

import tarfile


class StrictTarInfo(tarfile.TarInfo):
    """Header of a member, for ``tarfile.open(…, tarinfo=StrictTarInfo)``: only a block of zeros ends the archive.

    The standard library ends without an error where a file breaks off between two members or within a header, and at a damaged header:
    the members after that would be missing unnoticed.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictTarInfo:
        """Return the header in a block of 512 bytes.

        Raises:
            HeaderError: The block holds only zeros, which end an archive.
            ReadError: The file ends before that, or the block is not a header.
        """
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            reason = "it ends without the block of zeros that ends a tar file" if len(buf) < tarfile.BLOCKSIZE else str(error)
            raise tarfile.ReadError(reason) from None

"""The end of writing a GGUF file with gguf-py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_out(writer: GGUFWriter) -> None:
    """Write all that a writer has been given, and close its file whatever happens."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()

"""An open, self-hosted Workers KV: write anywhere, read everywhere from the local disk."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvp2p.store.reader import Replica

__all__ = ["Replica", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import what is asked for: most processes and commands never read a store, and start faster without LMDB."""
    if name == "Replica":
        from kvp2p.store.reader import Replica

        return Replica
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

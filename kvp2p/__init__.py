"""An open, self-hosted Workers KV: write anywhere, read everywhere from the local disk."""

__version__ = "0.1.0"

"""The data port: HTTP in, reads from this machine's disk, writes to this machine's node."""

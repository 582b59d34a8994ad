"""Strict CBOR: the bytes of mesh messages and of the unix socket between a machine's own processes."""

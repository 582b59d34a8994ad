"""The node process: the mesh, the leader's role, and the only writer of the store."""

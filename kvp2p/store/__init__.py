"""The store: one layout of rows, log and vector, on LMDB for nodes and in memory for the simulator."""

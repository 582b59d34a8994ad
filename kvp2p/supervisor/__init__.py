"""The small process that `kvp2p serve` is: it owns the directory, starts the processes of a node, and restarts any of them."""

"""The command line `kvp2p`: nodes, keys, namespaces, tokens. Exit codes: 0 done, 1 not found (scrub: damage found), 2 usage, 3 refused, 4 unknown."""

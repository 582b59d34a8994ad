"""What `scripts/bench` measures: one file a figure.

    replica.py       Replica.get against a bare LMDB get
    port.py          get and put: the data port of one node, in closed loops; port_client.py is a client process of it
    propagation.py   acknowledged to visible at every peer, and where that time goes; hops.py takes a write's way apart
    bootstrap.py     an empty peer that joins, against websocket.py: what a bare websocket carries on this machine
    catch_up.py      a peer that was away; arriving.py tells for both when a node has everything
    memory.py        anonymous memory of a node's processes, with few keys and with many
    large.py         small writes and digests beside values of 25 MiB
    large_memory.py  anonymous memory with many of those at once; moving.py starts large_client.py, a process that writes or reads them

    results.py       median and spread, budgets: the document that comes of it; text.py prints it
    nodes.py         clusters, what their processes take, questions to nodes; filling.py writes what a figure needs
    effort.py        how long and how often, and progress

Each figure is a function from an Effort to a Figure, and starts and ends its own cluster: none is disturbed by what another left behind.
"""

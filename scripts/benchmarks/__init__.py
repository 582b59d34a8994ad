"""What `scripts/bench` measures: one file a figure, each with a cluster of its own.

replica.py       Replica.get against a bare LMDB get
port.py          get and put: the data port of one node, in closed loops; port_client.py is a client process of it
propagation.py   acknowledged to visible at every peer, and where that time goes; hops.py takes a write's way apart
bootstrap.py     an empty peer that joins, against websocket.py: what a bare websocket carries on this machine
catch_up.py      a peer that was away
memory.py        anonymous memory of a node's processes, with few keys and with many
large.py         small writes and digests beside values of 25 MiB; large_client.py is the client process that moves those

results.py       median and spread, budgets: the document that comes of it; text.py prints it
nodes.py         clusters, what their processes take, questions to nodes; filling.py writes what a figure needs
effort.py        how long and how often, and progress
"""

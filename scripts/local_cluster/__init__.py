"""What `scripts/cluster` does: nodes of one cluster, all on this machine.

    state.py      what is written down of a cluster, and errors
    signals.py    ending, stopping and continuing nodes
    asking.py     what nodes say, and the document made of it
    starting.py   new nodes and their ports; starting, and waiting until all are ready
    faults.py     the proxy through which the links of a cluster with faults run: its life, and what is asked of it
    clock.py      making the clock of a node wrong
    fault_proxy.py, fault_links.py    the proxy itself, a program of its own

Each is imported by the commands that need it, and the first two import little: `kill` is to act within milliseconds,
on a machine that may be busy with five nodes.
"""

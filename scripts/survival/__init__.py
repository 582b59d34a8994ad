"""What `scripts/survive` and `scripts/catchup` are made of: load on a real cluster, faults meanwhile, and verdicts on what was seen.

history.py    what is known of a run: writes as their clients saw them, kills, cuts, what each node has in the end
plans.py      when to kill and to cut whom
running.py    load, kills and cuts on a cluster that is up, then the reading of all nodes
verdicts.py   pure functions from a history to its violations
telling.py    the figures, as a document and as a table
"""

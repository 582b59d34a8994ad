"""The pure core: protocol machines without I/O, clocks, threads or randomness of their own. See DESIGN.md beside this file."""

"""Whole clusters of real replica machines in one process, on virtual time, from one seed (see DESIGN.md in here)."""

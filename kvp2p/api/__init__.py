"""The API port: health, metrics and administration over HTTP, in a process of its own. See DESIGN.md beside this file."""

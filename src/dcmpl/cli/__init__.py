"""One file per command: its flags, its checks, its work."""

"""What `libero-vla` does, a module a command; the scripts in `examples/` call the same functions."""

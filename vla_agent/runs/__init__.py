"""Runs on disk: saved, kept, loaded and claimed; this room knows no algorithm."""

"""Turns weights into a static graph on disk; the export store."""
